"""Strategies: which channels go, from where, within which limits."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from builders import L, residual
from hypothesis import given
from hypothesis import strategies as st
from models import dense_block, padded_shortcut, two_residual_blocks, unet

import ridurre
from ridurre import Bins, ChannelPrune
from ridurre.allocation import knapsack
from ridurre.criteria import CRITERIA
from ridurre.errors import NothingToPruneError, RequestError
from ridurre.selection import SCOPES, Limits, Origin, Ranking, streams_of
from ridurre.testing import randomise, snapshot

MODELS = {
    "residual": residual,
    "residual blocks": two_residual_blocks,
    "dense block": dense_block,
    "padded shortcut": padded_shortcut,
    "unet": unet,
}


def widths(model: keras.Model) -> dict[str, int]:
    return {x.name: x.output.shape[-1] for x in model.layers if hasattr(x, "kernel")}


def chain(*sizes: int) -> keras.Model:
    """Dense layers d0, d1, … and a head."""
    inputs = keras.Input((3,))
    x = inputs
    for i, size in enumerate(sizes):
        x = L.Dense(size, activation="relu", name=f"d{i}")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def ordered(**scores: list[float]) -> Any:
    """A criterion by hand: scores by the layer that makes the channels."""
    return lambda graph, group: scores[group.producers[0]]


# --- every criterion with every scope -------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_works_with_every_scope(criterion: str, scope: str) -> None:
    model = two_residual_blocks()
    randomise(model)
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(8, 2, 2, 3)), rng.normal(size=(8, 2)))
    before = snapshot(model)
    target = ridurre.MACs(0.6)
    strategy = ChannelPrune(target=target, criterion=criterion, scope=scope, data=data)
    smaller, plan = strategy.run(model)
    assert target.measure(smaller) <= 0.6 * target.measure(model)
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    assert snapshot(model) == before
    assert strategy.plan(model) == plan  # the same seed, the same plan


# --- amounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("amount", [0.0, 0.2, 0.4, 0.7, 0.99])
def test_a_local_amount_is_the_same_fraction_everywhere(name: str, amount: float) -> None:
    model = MODELS[name]()
    graph = ridurre.DependencyGraph(model)
    smaller, plan = ChannelPrune(amount).run(model)
    left = {k: g.size for g in ridurre.DependencyGraph(smaller).groups for k in [g.producers]}
    for group in graph.groups:
        stay = max(1, group.size - int(amount * group.size + 1e-9))
        assert left.get(group.producers, 1) == stay
    assert not plan.removed or ridurre.verify(model, smaller, plan) <= 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("schedule", ["one_shot", "linear", "geometric", "cubic"])
def test_steps_end_at_the_same_amount(steps: int, schedule: str) -> None:
    model = chain(7, 5, 3)
    smaller = ridurre.prune(ChannelPrune(0.43, steps=steps, schedule=schedule), model)
    assert widths(smaller) == {"d0": 4, "d1": 3, "d2": 2, "head": 2}


def test_every_step_can_be_looked_at() -> None:
    model = chain(10)
    found = list(ChannelPrune(0.6, steps=3).each_step(model))
    assert [widths(m)["d0"] for m, _ in found] == [8, 6, 4]
    for smaller, plan in found:
        assert ridurre.verify(model, smaller, plan) <= 1e-4


def test_global_ranks_all_channels_together() -> None:
    model = chain(5, 3)
    scores = ordered(d0=[9, 1, 8, 2, 7], d1=[3, 10, 4])
    plan = ChannelPrune(0.5, scope="global", criterion=scores).plan(model)
    assert plan.removed["d0/kernel"][1].tolist() == [1, 3]
    assert plan.removed["d1/kernel"][1].tolist() == [0, 2]


def test_isomorphic_ranks_like_with_like() -> None:
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(6, 1, name="c0")(inputs)
    x = L.Conv2D(6, 1, name="c1")(x)
    x = L.Conv2D(4, 1, name="c2")(x)
    x = L.Dense(4, name="d0")(L.GlobalAveragePooling2D()(x))
    x = L.Dense(4, name="d1")(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    scores = ordered(
        c0=[1, 2, 3, 4, 5, 6], c1=[101, 102, 103, 104, 105, 106], c2=[1, 2, 3, 4],
        d0=[1000, 1, 2, 3], d1=[2000, 2001, 2002, 2003],
    )  # fmt: skip
    plan = ChannelPrune(0.5, scope="isomorphic", criterion=scores, min_channels=1).plan(model)
    gone = {k: len(v[max(v)]) for k, v in plan.removed.items() if k.endswith("kernel")}
    # c0 and c1 (read by a convolution) lose 6 of 12 together, at most all but one of one
    assert gone["c0/kernel"] == 5
    assert gone["c1/kernel"] == 1
    assert gone["c2/kernel"] == 2  # read by a dense layer: a kind of its own
    assert gone["d0/kernel"] == 3
    assert gone["d1/kernel"] == 1


def test_cost_divides_what_is_lost_by_what_is_saved() -> None:
    # d0 reads 3 and is read by 9: 12 multiplications a unit; d1 reads 5 and is read by 2: 7.
    model = chain(5, 9)
    scores = ordered(d0=[12, 24, 36, 48, 60], d1=[8.4, 9.1, 70, 70, 70, 70, 70, 70, 70])
    first = ChannelPrune(0.1, scope="global", criterion=scores).plan(model)
    assert "d0/bias" not in first.removed
    by_cost = ChannelPrune(0.1, scope="global", cost="macs", criterion=scores).plan(model)
    assert by_cost.removed["d0/bias"][0].tolist() == [0]
    assert "d1/bias" not in by_cost.removed


def test_amounts_by_layer() -> None:
    model = chain(10, 20, 30)
    smaller = ridurre.prune(ChannelPrune({"d0": 0.5, "d[12]": 0.1}), model)
    assert widths(smaller) == {"d0": 5, "d1": 18, "d2": 27, "head": 2}


def test_tied_layers_lose_what_the_most_cautious_of_them_may() -> None:
    model = residual()
    smaller = ridurre.prune(ChannelPrune({"stem": 0.6, "outer": 0.2}), model)
    assert widths(smaller)["stem"] == widths(smaller)["outer"] == 4


def test_bins_by_width() -> None:
    model = chain(4, 8, 16, 40)
    smaller = ridurre.prune(ChannelPrune(Bins((1, 8, 32), (0.25, 0.5))), model)
    assert widths(smaller) == {"d0": 3, "d1": 4, "d2": 8, "d3": 40, "head": 2}
    in_steps = ridurre.prune(ChannelPrune(Bins((1, 8, 32), (0.25, 0.5)), steps=3), model)
    assert widths(in_steps) == widths(smaller)  # the original's width counts


# --- limits ---------------------------------------------------------------------------------------


@given(
    amount=st.floats(0, 0.99),
    step=st.integers(1, 9),
    least=st.integers(1, 6),
    fraction=st.floats(0, 1),
    sizes=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    scope=st.sampled_from(["local", "global", "isomorphic"]),
)
def test_limits_hold(
    amount: float, step: int, least: int, fraction: float, sizes: Any, scope: str
) -> None:
    model = chain(*sizes)
    options = {"round_to": step, "min_channels": least, "min_fraction": fraction}
    smaller = ridurre.prune(ChannelPrune(amount, scope=scope, **options), model)
    for name, size in zip(("d0", "d1"), sizes, strict=True):
        left = widths(smaller)[name]
        assert left == size or (
            left % step == 0 and left >= least and left >= size * fraction - 1e-6
        )


@pytest.mark.parametrize(("amount", "left"), [(0.1, 20), (0.2, 16), (0.5, 16), (0.65, 8), (0.9, 8)])
def test_round_to_rounds_up(amount: float, left: int) -> None:
    smaller = ridurre.prune(ChannelPrune(amount, round_to=8), chain(20))
    assert widths(smaller)["d0"] == left


def test_round_to_counts_channels_of_groups() -> None:
    inputs = keras.Input((3, 3, 2))
    x = L.Conv2D(12, 1, name="wide")(inputs)
    x = L.Conv2D(12, 3, groups=3, name="grouped")(x)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    smaller = ridurre.prune(ChannelPrune(0.3, round_to=6, layers="grouped"), model)
    assert widths(smaller)["grouped"] == 12  # 9 would be left: rounded up to 12
    smaller = ridurre.prune(ChannelPrune(0.5, round_to=6, layers="grouped"), model)
    assert widths(smaller)["grouped"] == 6


def test_layers_and_protect() -> None:
    model = chain(10, 10, 10)
    assert widths(ridurre.prune(ChannelPrune(0.5, layers=["d0", "d2"]), model)) == {
        "d0": 5, "d1": 10, "d2": 5, "head": 2
    }  # fmt: skip
    assert widths(ridurre.prune(ChannelPrune(0.5, protect="d[02]"), model))["d1"] == 5
    assert widths(ridurre.prune(ChannelPrune(0.5, protect="d[02]"), model))["d0"] == 10


def test_residual_streams_are_found() -> None:
    graph = ridurre.DependencyGraph(two_residual_blocks())
    streams = [graph.groups[i].producers for i in streams_of(graph)]
    assert streams == [("stem", "one_out", "two_out")]
    padded = ridurre.DependencyGraph(padded_shortcut())
    assert {p for i in streams_of(padded) for p in padded.groups[i].producers} >= {"main"}
    assert streams_of(ridurre.DependencyGraph(chain(3, 5))) == set()


def test_an_addition_of_a_constant_makes_no_stream() -> None:
    inputs = keras.Input((3,))
    x = keras.ops.add(L.Dense(5, name="make")(inputs), np.arange(5, dtype="float32"))
    graph = ridurre.DependencyGraph(keras.Model(inputs, L.Dense(2)(x)))
    assert graph.groups
    assert streams_of(graph) == set()


@pytest.mark.parametrize("important", ["d0", "d1"])
def test_what_is_most_important_is_spared_first(important: str) -> None:
    graph = ridurre.DependencyGraph(chain(5, 5))
    scores = {g: np.arange(5.0) + 10 * (g.producers[0] == important) for g in graph.groups}
    ranking = Ranking(graph, scores, Origin(graph, "global"), Limits())
    request = {g: np.array([0]) for g in graph.groups}
    left = ranking.give_back(request, lambda r: len(r) >= 1)
    assert [g.producers[0] for g in left] == [{"d0": "d1", "d1": "d0"}[important]]


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_residual_streams_can_be_left_alone(scope: str) -> None:
    model = two_residual_blocks()
    smaller = ridurre.prune(ChannelPrune(0.4, scope=scope, streams="leave"), model)
    assert widths(smaller)["stem"] == 5
    assert widths(smaller)["one_in"] + widths(smaller)["two_in"] < 10


def test_residual_streams_can_be_ranked_apart() -> None:
    model = two_residual_blocks()
    scores = ordered(stem=[100, 101, 102, 103, 104], one_in=[1] * 7, two_in=[2] * 3)
    together = ridurre.prune(ChannelPrune(0.4, scope="global", criterion=scores), model)
    assert widths(together)["stem"] == 5
    apart = ChannelPrune(0.4, scope="global", streams="apart", criterion=scores)
    assert widths(ridurre.prune(apart, model))["stem"] == 3


# --- dynamic programming --------------------------------------------------------------------------

tables = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


@given(tables=tables, spare=st.integers(0, 40))
def test_dynamic_programming_finds_the_best_of_all(tables: Any, spare: int) -> None:
    errors = [np.array([float(e) for e, _ in row]) for row in tables]
    costs = [np.array([float(c) for _, c in row]) for row in tables]
    budget = sum(c.min() for c in costs) + spare
    # With as many buckets as the budget has units, nothing is rounded.
    picked = knapsack(errors, costs, budget, buckets=max(spare, 1))

    def total(table: list[np.ndarray], picks: Any) -> float:
        return sum(row[i] for row, i in zip(table, picks, strict=True))

    every = itertools.product(*(range(len(row)) for row in tables))
    best = min(total(errors, p) for p in every if total(costs, p) <= budget)
    assert total(costs, picked) <= budget
    assert total(errors, picked) == best


def test_a_budget_below_the_cheapest_is_refused() -> None:
    with pytest.raises(RequestError, match="at least 3.*Received: 2"):
        knapsack([np.zeros(2)], [np.array([3.0, 5.0])], 2)


def test_dynamic_programming_loses_no_more_than_one_fraction_everywhere() -> None:
    model = chain(31, 17, 23)
    rng = np.random.default_rng(0)
    values = {n: np.sort(rng.exponential(size=s)) for n, s in (("d0", 31), ("d1", 17), ("d2", 23))}

    def lost(scope: str) -> float:
        strategy = ChannelPrune(target=ridurre.MACs(0.5), scope=scope, criterion=ordered(**values))
        removed = strategy.plan(model).removed
        return sum(
            values[n][removed[f"{n}/bias"][0]].sum() for n in values if f"{n}/bias" in removed
        )

    assert lost("knapsack") <= lost("local")
    assert lost("knapsack") <= lost("global")


# --- several strategies ---------------------------------------------------------------------------


def test_a_list_is_one_strategy_per_layer() -> None:
    model = chain(10, 20)
    smaller = ridurre.prune([ChannelPrune(0.3), ChannelPrune(0.4), None], model)
    assert widths(smaller) == {"d0": 7, "d1": 12, "head": 2}


def test_a_dictionary_names_layers() -> None:
    model = chain(10, 20, 30)
    by_name = {"d0": ChannelPrune(0.5), "d[12]": ChannelPrune(0.1, criterion="l2")}
    assert widths(ridurre.prune(by_name, model)) == {"d0": 5, "d1": 18, "d2": 27, "head": 2}


@pytest.mark.parametrize("second", [ChannelPrune(0.2), ChannelPrune(0.2, criterion="random")])
def test_strategies_that_meet_do_not_add_up(second: ChannelPrune) -> None:
    by_name = {"stem": ChannelPrune(0.6), "outer": second}
    assert widths(ridurre.prune(by_name, residual()))["stem"] == 4


def test_nothing_to_do_gives_a_copy() -> None:
    model = chain(3)
    copy = ridurre.prune([None, None], model)
    assert copy is not model
    assert widths(copy) == widths(model)


# --- compiled state, defaults ---------------------------------------------------------------------


def test_the_result_is_compiled_like_the_original() -> None:
    model = chain(5)
    assert not ridurre.prune(ChannelPrune(0.4), model).compiled
    model.compile("adam", "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
    smaller = ridurre.prune(ChannelPrune(0.4, steps=2), model)
    assert smaller.compiled
    smaller.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)


def test_the_default_criterion_depends_on_the_data() -> None:
    x, y = np.ones((4, 3)), np.ones((4, 2))
    names = [
        type(ChannelPrune(0.5, data=d).settings.used_criterion).__name__ for d in (None, x, (x, y))
    ]
    assert names == ["Magnitude", "OutputTaylor", "GateTaylor"]


def test_recovery_in_between() -> None:
    rng = np.random.default_rng(0)
    model, x = chain(16, 16), rng.normal(size=(200, 3)).astype("float32")
    options = {"target": ridurre.MACs(0.4), "data": x, "criterion": "wifv"}
    plain = ridurre.prune(ChannelPrune(**options), model)
    recovered = ridurre.prune(ChannelPrune(**options, steps=3, recover="least_squares"), model)
    expected = model.predict(x, verbose=0)

    def error(m: keras.Model) -> float:
        return float(np.square(m.predict(x, verbose=0) - expected).mean())

    assert error(recovered) < 0.5 * error(plain)
    assert widths(recovered).keys() == widths(plain).keys()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "an amount to remove.*or a target that remains"),
        ({"amount": 0.5, "target": ridurre.MACs(0.5)}, "Received: amount=0.5"),
        ({"amount": 1.0}, r"amount in \[0, 1\). Received: 1.0"),
        ({"amount": -0.1}, "Received: -0.1"),
        ({"amount": "half"}, "Received: 'half'"),
        ({"amount": 0.5, "scope": "globl"}, "Did you mean 'global'"),
        ({"amount": 0.5, "cost": "flops"}, "Expected cost to be one of 'macs'"),
        ({"amount": 0.5, "streams": "keep"}, "Expected streams to be one of"),
        ({"amount": 0.5, "criterion": "l3"}, "Expected a criterion"),
        ({"amount": 0.5, "criterion": "wifv"}, "WeightedVariance needs data"),
        ({"amount": 0.5, "schedule": "slow"}, "Expected a schedule"),
        ({"amount": 0.5, "round_to": 0}, "round_to from 1"),
        ({"amount": 0.5, "min_channels": 0}, "min_channels"),
        ({"amount": 0.5, "min_fraction": 2}, "min_fraction"),
        ({"amount": 0.5, "steps": 1.5}, "steps"),
        ({"amount": {"d0": 0.5}, "scope": "global"}, "Amounts by layer need the scope 'local'"),
        ({"amount": {"d0": 7}}, "Received: 7"),
        ({"target": 0.5}, "Expected targets such as ridurre.MACs"),
        ({"amount": 0.5, "scope": "knapsack"}, "'knapsack' allocates for one target"),
        ({"target": ridurre.Latency(0.5), "scope": "knapsack"}, "one target of MACs, Params"),
        ({"amount": 0.5, "data": "pictures"}, "Expected data as model.fit takes them"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ChannelPrune(**arguments)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (0.5, "Expected a strategy such as ridurre.ChannelPrune"),
        ("l1", "Received: 'l1'"),
        ([ChannelPrune(0.5)], r"one strategy per layer, 2 in all: \['d0', 'head'\]. Received: 1"),
        ({"d0": 0.5}, "Received: 0.5"),
        ({"d0": ChannelPrune(target=ridurre.MACs(0.5))}, "are for the whole model"),
        ({"d0": ChannelPrune(0.5, steps=2)}, "one step"),
        ({"nowhere": ChannelPrune(0.5)}, "nowhere"),
    ],
)
def test_strategies_that_make_no_sense(strategy: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ridurre.prune(strategy, chain(3))


def test_a_target_of_what_is_not_there() -> None:
    with pytest.raises(RequestError, match="has no filters"):
        ridurre.prune(ChannelPrune(target=ridurre.Filters(0.7)), chain(3))


def test_bins_that_make_no_sense() -> None:
    for bounds, amounts in (((1, 2), (0.1, 0.2)), ((2, 1), (0.1,)), ((1, 2), (3,))):
        with pytest.raises(RequestError, match="Received"):
            Bins(bounds, amounts)


def test_a_model_without_channels_to_prune() -> None:
    inputs = keras.Input((3,))
    with pytest.raises(NothingToPruneError, match="no channels that can be pruned"):
        ridurre.prune(ChannelPrune(0.5), keras.Model(inputs, L.Dense(2)(inputs)))


# --- in the loop ----------------------------------------------------------------------------------


def test_the_loop_carries_out_a_strategy_step_by_step(tmp_path: Any) -> None:
    model = chain(12, 8)
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(32, 3)).astype("float32"), rng.normal(size=(32, 2)).astype("float32"))
    target = ridurre.MACs(0.5)
    strategy = ChannelPrune(target=target, scope="global", data=data, loss="mse", steps=3)

    def train(m: keras.Model, first: int, last: int) -> None:
        m.fit(*data, initial_epoch=first, epochs=last, verbose=0)

    def run(folder: Any) -> keras.Model:
        pruning = ridurre.ChannelPruning(
            strategy, lambda m: m.compile("sgd", "mse"), train, 1, seed=3
        )
        smaller, epochs = pruning.run_pruning(model, checkpoint_dir=folder)
        assert epochs == 3
        assert pruning.stopped == "maximum_prune_iterations"
        macs = [step.macs for step in pruning.history]
        assert macs == sorted(macs, reverse=True)
        return smaller

    smaller = run(tmp_path / "run")
    assert 0.4 <= target.measure(smaller) / target.measure(model) <= 0.5
    again = run(tmp_path / "run")  # finished already
    for a, b in zip(smaller.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_loop_refuses_what_is_no_strategy() -> None:
    with pytest.raises(RequestError, match="Received: float"):
        ridurre.ChannelPruning(0.5, print, None, 0)
    with pytest.raises(RequestError, match="layers in the strategy"):
        ridurre.ChannelPruning(ChannelPrune(0.5), print, None, 0, layers="d0")
