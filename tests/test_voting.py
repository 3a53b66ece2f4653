"""How the votes of tied layers merge, sentence by sentence."""

import keras
import numpy as np
import pytest
from builders import L, channels, residual, scripted, set_filters
from hypothesis import given
from hypothesis import strategies as st

import ridurre
from ridurre.criteria.weights import group_norms
from ridurre.voting import merge_votes

STEM, INNER = 5, 7  # channels of the two groups of the residual network


def level(model):
    """Make every channel of the residual network as large as any other."""
    for name, filters in (("stem", STEM), ("inner", INNER), ("outer", STEM)):
        set_filters(model, name, [1] * filters)
    model.get_layer("head").kernel.assign(np.ones((STEM, 2)))
    return model


@pytest.fixture
def model():
    return level(residual())


def merged(model, votes):
    """What goes, by the first layer that makes it."""
    graph = ridurre.DependencyGraph(model)
    return {g.producers[0]: list(units) for g, units in merge_votes(graph, votes).items()}


def test_the_network_has_the_two_groups_that_these_tests_are_about(model):
    groups = ridurre.DependencyGraph(model).groups
    assert [(g.producers, g.size) for g in groups] == [(("stem", "outer"), 5), (("inner",), 7)]


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "outer", "count"),
    [
        ([0, 1, 2], [0], 1),
        ([0], [0, 1, 2], 1),
        ([0, 1, 2], [2, 3, 4], 3),
        ([0, 1], [1, 2, 3], 2),
        ([3, 4], [], 0),
        ([], [3, 4], 0),
        ([], [], 0),
    ],
)
def test_as_many_go_as_the_most_cautious_layer_asks_for(model, stem, outer, count):
    assert len(merged(model, {"stem": stem, "outer": outer}).get("stem", [])) == count


def test_a_layer_that_did_not_vote_has_no_say(model):
    assert merged(model, {"stem": [1, 3]}) == {"stem": [1, 3]}
    assert merged(model, {"outer": [1, 3]}) == {"stem": [1, 3]}


def test_a_layer_that_asks_for_none_is_heard(model):
    assert merged(model, {"stem": [1, 3], "outer": []}) == {}


def test_groups_are_counted_one_by_one(model):
    votes = {"stem": [1, 3], "outer": [3], "inner": [0, 2, 6]}
    assert merged(model, votes) == {"stem": [3], "inner": [0, 2, 6]}
    assert merged(model, votes | {"outer": []}) == {"inner": [0, 2, 6]}


def test_one_channel_always_stays(model):
    everything = {"stem": range(STEM), "outer": range(STEM), "inner": range(INNER)}
    set_filters(model, "stem", [1, 1, 9, 1, 1])
    set_filters(model, "inner", [1, 1, 1, 1, 9, 1, 1])
    assert merged(model, everything) == {"stem": [0, 1, 3, 4], "inner": [0, 1, 2, 3, 5, 6]}


def test_votes_of_layers_outside_every_group_change_nothing(model):
    assert merged(model, {"stem": [1], "head": [0], "relu": [0]}) == {"stem": [1]}


def test_votes_may_be_any_iterable(model):
    votes = {"stem": np.array([3, 1]), "outer": (1, 3), "inner": {2}}
    assert merged(model, votes) == {"stem": [1, 3], "inner": [2]}


# --- which ones -----------------------------------------------------------------------------------


def test_channels_with_more_votes_go_first(model):
    # Channel 4 is by far the largest, and both want it gone.
    set_filters(model, "stem", [1, 2, 3, 4, 50])
    assert merged(model, {"stem": [0, 4], "outer": [4, 1]})["stem"][-1] == 4
    assert merged(model, {"stem": [0, 4], "outer": [4]}) == {"stem": [4]}


def test_votes_are_counted_over_all_members():
    """Three tied layers: two votes beat one, one beats none."""
    inputs = keras.Input((2, 2, 3))
    arms = [L.Conv2D(5, 1, use_bias=False, name=name)(inputs) for name in ("p", "q", "r")]
    x = L.Flatten()(L.Add()(arms))
    model = keras.Model(inputs, L.Dense(2)(x))
    set_filters(model, "p", [1, 2, 3, 4, 5])
    assert merged(model, {"p": [0, 2, 4], "q": [2, 3, 4], "r": [4, 1, 2]}) == {"p": [0, 2, 4]}
    assert merged(model, {"p": [0, 4], "q": [3, 4], "r": [3]}) == {"p": [3]}
    assert merged(model, {"p": [0, 1], "q": [2, 3], "r": [3, 4]}) == {"p": [0, 3]}


@pytest.mark.parametrize(
    ("layer", "sizes", "gone"),
    [
        ("stem", [9, 9, 9, 1, 2], [3]),
        ("outer", [9, 9, 9, 2, 1], [4]),
    ],
)
def test_ties_go_by_the_smaller_norm(model, layer, sizes, gone):
    set_filters(model, layer, sizes)
    assert merged(model, {"stem": [3], "outer": [4]}) == {"stem": gone}


def test_norms_are_summed_over_the_whole_group(model):
    """Channel 3 is the smaller one in `stem`, channel 4 in `outer`, in `inner` and in all."""
    set_filters(model, "stem", [9, 9, 9, 1, 3])
    assert merged(model, {"stem": [3], "outer": [4]}) == {"stem": [3]}
    set_filters(model, "outer", [9, 9, 9, 6, 5])
    assert merged(model, {"stem": [3], "outer": [4]}) == {"stem": [3]}
    inner = model.get_layer("inner").kernel.numpy()
    inner[0, 0, 3, 0] += 2  # read by the next convolution with a larger weight
    model.get_layer("inner").kernel.assign(inner)
    assert merged(model, {"stem": [3], "outer": [4]}) == {"stem": [4]}
    head = model.get_layer("head").kernel.numpy()
    head[4] -= 5  # negative weights count by their size
    model.get_layer("head").kernel.assign(head)
    assert merged(model, {"stem": [3], "outer": [4]}) == {"stem": [3]}


def test_among_equals_the_lower_index_goes(model):
    assert merged(model, {"stem": [1, 4], "outer": [2, 3]}) == {"stem": [1, 2]}
    assert merged(model, {"stem": [4], "outer": [3]}) == {"stem": [3]}


def test_a_channel_nobody_named_goes_before_none_that_was_named(model):
    set_filters(model, "stem", [0.1, 5, 5, 5, 5])
    assert merged(model, {"stem": [3, 4], "outer": [1, 2]}) == {"stem": [1, 2]}


def test_the_norm_counts_scale_and_offset_but_no_moving_statistics():
    inputs = keras.Input((2, 2, 3))
    x = L.Conv2D(5, 1, name="a")(inputs)
    x = L.BatchNormalization(name="bn")(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    set_filters(model, "a", [1, 2, 3, 4, 5])
    model.get_layer("a").bias.assign([-10, 0, 0, 0, 0])
    bn = model.get_layer("bn")
    bn.gamma.assign([0, -100, 0, 0, 0])
    bn.beta.assign([0, 0, -1000, 0, 0])
    bn.moving_mean.assign([9e9] * 5)
    bn.moving_variance.assign([9e9] * 5)
    model.get_layer("head").kernel.assign([[0, 0], [0, 0], [0, 0], [1e4, -1e4], [0, 0]])
    graph = ridurre.DependencyGraph(model)
    np.testing.assert_allclose(
        np.sum(group_norms(graph, graph.groups[0]), axis=0), [11, 102, 1003, 20004, 5], rtol=1e-6
    )


def test_the_norm_counts_every_position_that_a_channel_owns():
    """After Flatten, each channel owns one row of the dense kernel per pixel."""
    inputs = keras.Input((2, 2, 3))
    x = L.Flatten()(L.Conv2D(3, 1, use_bias=False, name="a")(inputs))
    model = keras.Model(inputs, L.Dense(1, use_bias=False, name="head")(x))
    set_filters(model, "a", [0, 0, 0])
    model.get_layer("head").kernel.assign(np.arange(12.0)[:, None])
    graph = ridurre.DependencyGraph(model)
    np.testing.assert_allclose(
        np.sum(group_norms(graph, graph.groups[0]), axis=0),
        [0 + 3 + 6 + 9, 1 + 4 + 7 + 10, 2 + 5 + 8 + 11],
    )


# --- several channels in one unit -----------------------------------------------------------------


def grouped(filters, groups):
    inputs = keras.Input((2, 2, 3))
    x = L.Conv2D(2 * groups, 1, name="before")(inputs)
    x = L.Conv2D(filters, 1, groups=groups, use_bias=False, name="grouped")(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    for variable in model.variables:
        variable.assign(np.ones(variable.shape))
    return model


@pytest.mark.parametrize(
    ("votes", "gone"),
    [
        ([0], []),  # half a unit is none
        ([0, 1], [0]),
        ([2, 3], [1]),
        ([1, 2], [0]),  # two halves are one; both are as good, so the first goes
        ([0, 2, 4], [0]),
        ([1, 4, 5], [2]),  # a whole vote beats a half
        ([0, 1, 4, 5], [0, 2]),
        ([0, 1, 2, 3, 4, 5], [0, 1]),
    ],
)
def test_a_vote_for_a_unit_is_the_fraction_of_its_channels(votes, gone):
    """Three groups of two filters each: the units are the groups."""
    graph = ridurre.DependencyGraph(grouped(6, groups=3))
    (group,) = graph.groups
    assert group.size == 3
    assert list(merge_votes(graph, {"grouped": votes}).get(group, [])) == gone


def test_thirds_add_up_to_one():
    graph = ridurre.DependencyGraph(grouped(9, groups=3))
    (group,) = graph.groups
    assert list(merge_votes(graph, {"grouped": [1, 4, 7]})[group]) == [0]
    assert merge_votes(graph, {"grouped": [1, 4]}) == {}


def test_halves_and_wholes_are_added_up():
    """`before` has two channels per unit, `grouped` three; both are heard."""
    graph = ridurre.DependencyGraph(grouped(9, groups=3))
    (group,) = graph.groups
    votes = {"before": [0, 2, 3], "grouped": [6, 7, 8]}  # ½ + 1; 1
    assert list(merge_votes(graph, votes)[group]) == [1]
    votes = {"before": [0, 1, 2], "grouped": [3, 4, 6, 7, 8]}  # 1, ½, 0; 0, ⅔, 1
    assert list(merge_votes(graph, votes)[group]) == [1]


# --- for any votes --------------------------------------------------------------------------------


def channel_sets(count):
    return st.sets(st.integers(0, count - 1))


ballots = st.fixed_dictionaries(
    {},
    optional={
        "stem": channel_sets(STEM),
        "outer": channel_sets(STEM),
        "inner": channel_sets(INNER),
    },
)
# Multiples of 3 · 5 · 7, so that the weights are whole numbers and equal norms are exactly equal.
size = st.integers(0, 3).map(lambda n: 105 * n)
sizes = st.fixed_dictionaries(
    {
        "stem": st.lists(size, min_size=STEM, max_size=STEM),
        "outer": st.lists(size, min_size=STEM, max_size=STEM),
        "inner": st.lists(size, min_size=INNER, max_size=INNER),
    }
)


@pytest.fixture(scope="module")
def shared_graph():
    return ridurre.DependencyGraph(level(residual()))


@given(votes=ballots, norms=sizes)
def test_any_votes_merge_by_the_rule(shared_graph, votes, norms):
    """A second, slow reading of the rule, on norms with many ties."""
    model = shared_graph.model
    for layer, values in norms.items():
        set_filters(model, layer, values)
    chosen = merge_votes(shared_graph, votes)
    for group, members in zip(shared_graph.groups, (("stem", "outer"), ("inner",)), strict=True):
        cast = [votes[m] for m in members if m in votes]
        count = min([len(vote) for vote in cast] or [0])
        units = list(chosen.get(group, []))
        assert len(units) == min(count, group.size - 1)
        own = np.sum([norms[m] for m in members], axis=0)
        ranked = sorted(
            range(group.size), key=lambda i: (-sum(i in v for v in cast), float(own[i]), i)
        )
        assert units == sorted(ranked[: len(units)])


@given(seed=st.integers(0, 2**16), picky=st.booleans())
def test_the_loop_makes_progress_whatever_is_voted(shared_graph, seed, picky):
    """If every layer asks for something, every round removes something, down to one channel."""
    rng = np.random.default_rng(seed)
    left = {"stem": STEM, "outer": STEM, "inner": INNER}
    votes = {
        name: rng.permutation(count)[: rng.integers(1, 2 if picky else count)].tolist()
        for name, count in left.items()
    }
    chosen = merge_votes(shared_graph, votes)
    asked = [min(len(votes["stem"]), len(votes["outer"])), len(votes["inner"])]
    assert [len(chosen[g]) for g in shared_graph.groups] == asked


def test_random_votes_prune_a_residual_network_to_the_end(rng):
    def answer(layer, kernel):
        count = kernel.shape[-1]
        return rng.permutation(count)[: rng.integers(1, count)].tolist()

    pruning = scripted(answer, rounds=None)
    smaller, _ = pruning.run_pruning(residual())
    left = [step.filters for step in pruning.history]
    assert left == sorted(set(left), reverse=True)
    assert [channels(smaller, name) for name in ("stem", "inner", "outer")] == [1, 1, 1]


def test_what_was_merged_can_be_planned(model):
    graph = ridurre.DependencyGraph(model)
    votes = {"stem": [1, 3], "outer": [3], "inner": [0, 6]}
    plan = graph.get_pruning_plan(merge_votes(graph, votes))
    assert plan.removed["stem/kernel"][3].tolist() == [3]
    assert plan.removed["outer/kernel"][3].tolist() == [3]
    assert plan.removed["outer/kernel"][2].tolist() == [0, 6]
    assert ridurre.verify(model, plan.exec(), plan) == 0
