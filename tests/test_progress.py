"""Bars, lines in the log, and silence."""

import logging

import keras
import numpy as np
import pytest
from builders import L

import ridurre
from ridurre import progress
from ridurre.progress import Bar, shown, track

pytestmark = pytest.mark.core


@pytest.fixture
def impatient(monkeypatch):
    """Bars of short calls appear too."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)


@pytest.fixture
def in_the_log(caplog):
    """As a batch job is set up: no bars."""
    keras.config.disable_interactive_logging()
    with caplog.at_level(logging.INFO, "ridurre"):
        yield caplog
    keras.config.enable_interactive_logging()


def network():
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(5, 3, name="a")(inputs)
    x = L.GlobalAveragePooling2D()(L.Conv2D(7, 3, name="b")(x))
    return keras.Model(inputs, L.Dense(3, name="head")(x))


def train(model, initial_epoch, epochs):
    """Nothing."""


def lottery(**options):
    strategy = ridurre.LevelPrune(0.5)
    ridurre.lottery_ticket(network(), train, strategy, epochs=1, rounds=3, **options)


def stages(**options):
    both = [ridurre.LevelPrune(0.5), ridurre.LevelPrune(0.7)]
    ridurre.iterative_prune(lambda model: True, both, network(), **options)


def rounds(verbose=1):
    ridurre.RandomFilterPruning(
        0.2, lambda m: None, None, 0, maximum_prune_iterations=2, maximum_pruning_percent=None,
        seed=0, verbose=verbose,
    ).run_pruning(network())  # fmt: skip


def steps(**options):
    ridurre.prune(ridurre.ChannelPrune(0.4, steps=4), network(), **options)


def scores(**options):
    x = np.ones((70, 6, 6, 3), "float32")
    strategy = ridurre.ChannelPrune(0.4, criterion="output_taylor", data=x)
    ridurre.prune(strategy, network(), **options)


def levels(**options):
    strategy = ridurre.LevelPrune(0.5, criterion="wanda", data=np.ones((8, 6, 6, 3)), steps=2)
    ridurre.prune(strategy, network(), **options)


def refits(**options):
    model = network()
    with shown(0):
        plan = ridurre.ChannelPrune(0.4).plan(model)
    ridurre.recover(plan.exec(), model, plan, np.ones((8, 6, 6, 3)), **options)


CALLS = [
    (lottery, "Lottery ticket", "3/3"),
    (stages, "Pruning", "2/2"),
    (rounds, "Pruning", "2/2"),
    (steps, "Pruning", "4/4"),
    (scores, "Scoring", "3/3"),
    (levels, "Scoring", "4/4"),
]


@pytest.mark.parametrize(("call", "what", "count"), CALLS)
def test_every_long_call_shows_a_bar(call, what, count, impatient, capsys):
    call()
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert f"/{count.partition('/')[2]} [" in err


@pytest.mark.parametrize("call", [*(call for call, *_ in CALLS)])
def test_bars_can_be_switched_off(call, impatient, capsys):
    call(verbose=0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("call", "what", "count"), CALLS)
def test_without_bars_the_log_has_lines(call, what, count, in_the_log, capsys):
    call()
    assert capsys.readouterr() == ("", "")
    done = [r.getMessage() for r in in_the_log.records if r.getMessage().startswith(f"{what}: ")]
    assert any(count.replace("/", " of ") in line for line in done)


def test_short_calls_show_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 60.0)  # the machine may be slow
    steps()
    scores()
    refits()
    assert capsys.readouterr() == ("", "")


def test_the_search_for_a_measured_target_has_a_bar(impatient, capsys):
    class Size(ridurre.Target):
        """Parameters, measured and not computed."""

        unit = "numbers"

        def measure(self, model):
            return model.count_params()

    ridurre.prune(ridurre.ChannelPrune(target=Size(0.6), scope="global"), network())
    assert "Searching" in capsys.readouterr().err


def test_the_outer_call_decides(capsys):
    with shown(0), shown(1):
        assert list(track("abc", "Letters", patience=0)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    list(track("abc", "Letters", patience=0))
    assert "Letters" in capsys.readouterr().err


def test_an_error_closes_the_bar(capsys):
    with pytest.raises(KeyError), Bar("Counting", 3, patience=0):
        raise KeyError
    with Bar("Again", 3, patience=0):  # on the first line: nothing is left open
        pass
    assert "\n\n" not in capsys.readouterr().err


def test_a_long_loop_writes_ten_lines(in_the_log):
    list(track(range(95), "Counting"))
    lines = [r.getMessage() for r in in_the_log.records]
    assert len(lines) == 10
    assert lines[0] == "Counting: step 10 of 95"
    assert lines[-1] == "Counting: step 95 of 95"


def test_numbers_stand_behind_the_bar(in_the_log, capsys):
    with Bar("Pruning", 2, unit="round") as bar:
        bar.advance(filters=7)
    assert in_the_log.records[-1].getMessage() == "Pruning: round 1 of 2, filters: 7"
    keras.config.enable_interactive_logging()
    with Bar("Pruning", 2, unit="round", patience=0) as bar:
        bar.advance(filters=7)
    assert "filters=7" in capsys.readouterr().err
