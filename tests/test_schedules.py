"""The contract of every schedule: it starts somewhere, never goes back, and ends at the amount."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridurre.errors import RequestError
from ridurre.schedules import SCHEDULES, amount_at, get


@pytest.mark.parametrize("name", SCHEDULES)
@given(steps=st.integers(1, 40), amount=st.floats(0, 0.999))
def test_monotone_within_range_and_exact_at_the_end(name: str, steps: int, amount: float) -> None:
    found = [amount_at(get(name), i, steps, amount) for i in range(steps)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] == amount
    assert get(name)(steps - 1, steps, amount) == pytest.approx(amount)


def test_the_formulas() -> None:
    def at(name: str, step: int) -> float:
        return amount_at(get(name), step, 4, 0.6)

    assert at("one_shot", 0) == 0.6
    assert at("linear", 1) == pytest.approx(0.3)
    assert at("geometric", 1) == pytest.approx(1 - 0.4**0.5)
    assert at("cubic", 1) == pytest.approx(0.6 * (1 - 0.5**3))


def test_a_function_is_a_schedule() -> None:
    assert amount_at(get(lambda step, steps, amount: 0.1 * step), 2, 5, 0.7) == pytest.approx(0.2)
    assert amount_at(get(lambda step, steps, amount: 0.1), 4, 5, 0.7) == 0.7
    with pytest.raises(RequestError, match=r"schedule's amount in \[0, 1\]. Received: 3"):
        amount_at(get(lambda step, steps, amount: 3), 0, 5, 0.7)


@pytest.mark.parametrize("spec", ["cubik", 3, None])
def test_an_unknown_schedule_is_named(spec: Any) -> None:
    with pytest.raises(RequestError, match="one of 'one_shot', 'linear', 'geometric', 'cubic'"):
        get(spec)
