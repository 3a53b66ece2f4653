"""Groups, plans and rebuilt models of small networks for which the right answer is known."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from models import (
    NETWORKS,
    channels_first,
    dense_block,
    grouped_and_depthwise,
    head,
    inner,
    padded_shortcut,
    padding_twice,
    several_outputs_twice,
    shared_convolution,
    split_and_flatten,
    squeeze_and_excite,
    three_deep,
    twins,
    two_residual_blocks,
    unet,
)

import ridurre
from ridurre.errors import FrozenChannelError, RequestError, RuleError, VerificationError
from ridurre.testing import check_model, randomise, snapshot


def groups(model: keras.Model) -> dict[tuple[str, ...], int]:
    """Number of channels by the layers that make them."""
    found = [(tuple(sorted(g.producers)), g.size) for g in ridurre.DependencyGraph(model).groups]
    assert len(dict(found)) == len(found)
    return dict(found)


def prune(model: keras.Model, *request: Any) -> tuple[dict[str, list[int]], keras.Model]:
    """Remove channels; return what goes, as ``{"path axis": indices}``, and the exact result."""
    randomise(model)
    before = snapshot(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan(*request)
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    assert snapshot(model) == before
    removed = plan.removed.items()
    return {f"{p} {a}": i.tolist() for p, axes in removed for a, i in axes.items()}, smaller


# --- branches ----------------------------------------------------------------------------------


def test_additions_tie_what_is_added() -> None:
    model = two_residual_blocks()
    assert groups(model) == {
        ("one_out", "stem", "two_out"): 5,
        ("one_in",): 7,
        ("two_in",): 3,
    }
    removed, _ = prune(model, "two_out", [1, 4])
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    assert removed == {
        "stem/kernel 3": [1, 4],
        "stem/bias 0": [1, 4],
        "one_in/kernel 2": [1, 4],
        "one_out/kernel 3": [1, 4],
        "one_out/bias 0": [1, 4],
        "two_in/kernel 2": [1, 4],
        "two_out/kernel 3": [1, 4],
        "two_out/bias 0": [1, 4],
        **{f"last_bn/{name} 0": [1, 4] for name in norm},
        "head/kernel 0": [1, 4],
    }


def test_concatenation_shifts_the_indices_of_every_reader() -> None:
    model = dense_block()
    assert groups(model) == {("a",): 3, ("b",): 5, ("c",): 7}
    removed, smaller = prune(model, {"a": [0], "b": [1, 4], "c": [2]})
    assert removed["b/kernel 2"] == removed["a_bn/gamma 0"] == [0]
    assert removed["c/kernel 2"] == removed["ab_bn/moving_mean 0"] == [0, 4, 7]
    assert removed["head/kernel 0"] == removed["cab_bn/moving_variance 0"] == [2, 7, 11, 14]
    assert smaller.get_layer("cab_bn").beta.shape == (11,)


def test_a_zero_padded_shortcut_loses_its_zeros_or_its_channels() -> None:
    model = padded_shortcut()
    assert groups(model) == {("main", "stem"): 3, ("main",): 3}
    removed, smaller = prune(model, "stem", [1])
    assert removed["main/kernel 2"] == [1]
    assert removed["main/kernel 3"] == removed["bn/gamma 0"] == removed["head/kernel 0"] == [3]
    assert widths(smaller) == (2, 1)
    removed, smaller = prune(model, "main", [0])
    assert "stem/kernel 3" not in removed and removed["main/kernel 3"] == [0]
    assert widths(smaller) == (1, 1)
    assert widths(prune(model, "main", [1, 2, 5])[1]) == (1, 0)


def widths(model: keras.Model) -> tuple[int, int]:
    """How much the first padding operation of a model adds in front of and behind the channels."""
    operation = next(x for x in model.operations if type(x).__name__ == "Pad")
    return tuple(operation.pad_width[-1])


def test_a_skip_connection_around_a_transposed_convolution() -> None:
    model = unet()
    assert groups(model) == {("down",): 3, ("bottom",): 7, ("up",): 5}
    removed, _ = prune(model, {"up": [0, 3], "down": [1], "bottom": [2, 6]})
    assert removed == {
        "down/kernel 3": [1],
        "down/bias 0": [1],
        "bottom/kernel 2": [1],
        "bottom/kernel 3": [2, 6],
        "bottom/bias 0": [2, 6],
        "up/kernel 3": [2, 6],
        "up/kernel 2": [0, 3],
        "up/bias 0": [0, 3],
        "out/kernel 2": [0, 3, 6],
    }


def test_a_gate_goes_with_what_it_scales() -> None:
    model = squeeze_and_excite("sigmoid")
    assert groups(model) == {("excite", "wide"): 5, ("squeeze",): 3}
    removed, smaller = prune(model, "excite", [0, 3])
    assert removed["wide/kernel 3"] == removed["squeeze/kernel 0"] == [0, 3]
    assert removed["excite/kernel 1"] == removed["head/kernel 0"] == [0, 3]
    assert "excite/kernel 0" not in removed
    reshape = next(x for x in smaller.layers if isinstance(x, L.Reshape))
    assert reshape.target_shape == (1, 1, 3)


def test_groups_and_multipliers() -> None:
    """Three groups of two channels to three filters; then two outputs per channel."""
    model = grouped_and_depthwise()
    assert groups(model) == {("depthwise", "grouped", "x"): 3, ("separable",): 5}
    removed, smaller = prune(model, {"x": [3], "separable": [0]})
    assert removed["x/kernel 3"] == [2, 3]
    assert removed["grouped/kernel 3"] == removed["depthwise/kernel 2"] == [3, 4, 5]
    assert removed["separable/depthwise_kernel 2"] == [6, 7, 8, 9, 10, 11]
    assert removed["head/kernel 0"] == [0]
    assert "grouped/kernel 2" not in removed and "depthwise/kernel 3" not in removed
    assert smaller.get_layer("grouped").groups == 2


def test_slices_permutation_and_flatten() -> None:
    """x splits into 2 + 5 channels, the 5 come first; Permute puts channels in front."""
    model = split_and_flatten()
    sizes = [(g.producers, g.size) for g in ridurre.DependencyGraph(model).groups]
    assert sizes == [(("x",), 2), (("x",), 5)]
    removed, smaller = prune(model, "x", [1, 4])
    assert removed["head/kernel 0"] == [8, 9, 10, 11, 24, 25, 26, 27]
    assert smaller.get_layer("flat").output.shape == (None, 20)
    with pytest.raises(RequestError, match="every channel of a slice"):
        ridurre.DependencyGraph(model).get_pruning_plan("x", [0, 1])


def test_channels_first() -> None:
    """Five pooled channels; then four positions of five channels, position by position."""
    model = channels_first()
    assert groups(model) == {("x",): 5}
    removed, _ = prune(model, "x", [1, 3])
    assert removed["last/gamma 0"] == removed["bn/moving_variance 0"] == [1, 3]
    assert removed["head/kernel 0"] == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23]


def test_a_slice_keeps_one_channel() -> None:
    inputs = keras.Input((2, 2, 2))
    a, b = ops.split(L.Conv2D(5, 1, name="x")(inputs), (2,), axis=-1)
    graph = ridurre.DependencyGraph(keras.Model(inputs, head(L.Concatenate()([b, a]))))
    assert [g.size for g in graph.groups] == [2, 3]
    assert graph.get_pruning_plan("x", [0, 3]).removed["head/kernel"][0].tolist() == [1, 3]
    with pytest.raises(RequestError, match="every channel of a slice"):
        graph.get_pruning_plan("x", [0, 1])


def test_an_outer_product_keeps_both_factors() -> None:
    inputs = keras.Input((2,))
    x, y = L.Dense(3, name="x")(inputs), L.Dense(5, name="y")(inputs)
    flat = L.Flatten()(x[:, :, None] * y[:, None])
    model = keras.Model(inputs, L.Dense(2)(flat))
    assert groups(model) == {}
    for name in ("x", "y"):
        with pytest.raises(FrozenChannelError, match="broadcast over other channels"):
            ridurre.DependencyGraph(model).get_pruning_plan(name, [0])


# --- nesting and sharing -----------------------------------------------------------------------


def test_twins_have_paths_of_their_own() -> None:
    model = twins()
    assert groups(model) == {
        ("left/conv",): 5,
        ("left/out",): 4,
        ("right/conv",): 7,
        ("right/out",): 4,
    }
    removed, smaller = prune(model, {"left/conv": [1], "right/conv": [5], "right/out": [3]})
    assert removed == {
        "left/conv/kernel 3": [1],
        "left/conv/bias 0": [1],
        "left/out/kernel 2": [1],
        "right/conv/kernel 3": [5],
        "right/conv/bias 0": [5],
        "right/out/kernel 2": [5],
        "right/out/kernel 3": [3],
        "right/out/bias 0": [3],
        "head/kernel 0": [7],
    }
    assert [x.name for x in smaller.layers] == [x.name for x in model.layers]
    with pytest.raises(RequestError, match=r"Several layers are called 'conv'.*left/conv"):
        ridurre.DependencyGraph(model).get_pruning_plan("conv", [0])


def test_a_nested_model_called_twice_pads_alike_in_both_calls() -> None:
    """Its input and output are tied, and so are the zeros at the edges of both outputs."""
    model = padding_twice()
    assert groups(model) == {("stem",): 2, ("padding/conv", "stem"): 3}
    removed, smaller = prune(model, "stem", [0, 2])
    assert removed["conv/kernel 3"] == [1]
    assert removed["conv/kernel 2"] == removed["head/kernel 0"] == [0, 2]
    assert widths(smaller.get_layer("padding")) == (0, 1)
    assert check_model(model) > 0


def test_a_nested_model_with_several_outputs_called_twice() -> None:
    model = several_outputs_twice()
    assert groups(model) == {("a", "b"): 3, ("fork/shared",): 5, ("fork/other",): 4}
    removed, smaller = prune(model, {"b": [2], "other": [0, 3]})
    assert removed["a/kernel 1"] == removed["shared/kernel 0"] == [2]
    assert removed["head_2/kernel 0"] == removed["head_3/kernel 0"] == [0, 3]
    assert len({id(x) for x in smaller.layers}) == len(model.layers)
    assert [tuple(t.shape) for t in smaller.outputs] == [(None, 2), (None, 3), (None, 1)]


def test_sequential_in_functional_in_functional() -> None:
    model = three_deep()
    assert groups(model) == {("conv",): 3, ("middle/row/conv",): 5, ("middle/conv",): 4}
    removed, smaller = prune(model, {"middle/row/conv": [0, 4], "conv": [1]})
    assert removed == {
        "conv/kernel 3": [1],
        "conv/bias 0": [1],
        "row/conv/kernel 2": [1],
        "row/conv/kernel 3": [0, 4],
        "row/conv/bias 0": [0, 4],
        "middle/conv/kernel 2": [0, 4],
    }
    row = smaller.get_layer("middle").get_layer("row")
    assert type(row) is keras.Sequential and row.layers[0].filters == 3


def test_a_convolution_that_reads_two_tensors_ties_them() -> None:
    model = shared_convolution()
    assert groups(model) == {("x", "y"): 3, ("shared",): 5, ("z",): 7}
    removed, _ = prune(model, {"y": [0], "shared": [1], "z": [6]})
    assert removed["x/kernel 3"] == removed["shared/kernel 2"] == removed["z/kernel 2"] == [0]
    assert removed["head/kernel 0"] == [1, 11, 13]


@pytest.mark.parametrize("width", [3, 4])
def test_a_shared_activation_ties_nothing(width: int) -> None:
    relu, inputs = L.ReLU(), keras.Input((2, 2, 2))
    x, y = L.Conv2D(width, 1, name="x")(inputs), L.Conv2D(4, 1, name="y")(inputs)
    model = keras.Model(inputs, head(L.Concatenate()([relu(x), relu(y)])))
    assert groups(model) == {("x",): width, ("y",): 4}
    assert check_model(model) == 2**width + 2**4 - 4


def test_a_shared_reshape_ties_what_it_reads() -> None:
    """It has one target shape, so both tensors lose equally much, and at the same place."""
    inputs = keras.Input((2, 2, 2))
    rows, x, y = L.Reshape((4, 5), name="rows"), L.Dense(5, name="x"), L.Dense(5, name="y")
    a, b = (L.Flatten()(rows(layer(inputs))) for layer in (x, y))
    model = keras.Model(inputs, [L.Dense(2, name="a")(a), L.Dense(3, name="b")(b)])
    assert groups(model) == {("x", "y"): 5}
    removed, smaller = prune(model, "y", [0, 4])
    assert removed["x/kernel 1"] == [0, 4]
    assert removed["a/kernel 0"] == [0, 4, 5, 9, 10, 14, 15, 19]
    assert smaller.get_layer("rows").target_shape == (4, 3)


def test_a_shared_depthwise_layer_makes_the_same_outputs_in_both_calls() -> None:
    both, inputs = L.DepthwiseConv2D(1, depth_multiplier=2, name="both"), keras.Input((2, 2, 2))
    x, y = L.Conv2D(3, 1, name="x")(inputs), L.Conv2D(3, 1, name="y")(inputs)
    model = keras.Model(inputs, head(L.Concatenate()([both(x), both(y)])))
    assert groups(model) == {("both", "x", "y"): 3}
    removed, _ = prune(model, "y", [1])
    assert removed["x/kernel 3"] == removed["both/kernel 2"] == [1]
    assert removed["head/kernel 0"] == [2, 3, 8, 9]


def test_a_dense_layer_over_channels_and_over_positions() -> None:
    """`mix` reads the four channels of `y`, and the four positions of `x`, so it must stay."""
    mix, inputs = L.Dense(6, name="mix"), keras.Input((4, 2))
    x, y = L.Dense(3, name="x")(inputs), L.Dense(4, name="y")(inputs)
    x, y = L.Permute((2, 1))(x), mix(y)
    model = keras.Model(inputs, [L.Dense(2)(L.Flatten()(mix(x))), L.Dense(2)(L.Flatten()(y))])
    assert groups(model) == {("x",): 3}
    for name in ("y", "mix"):
        with pytest.raises(FrozenChannelError, match="'mix'"):
            ridurre.DependencyGraph(model).get_pruning_plan(name, [0])
    assert check_model(model) == 6


# --- inputs and outputs ------------------------------------------------------------------------


def test_dictionaries_and_lists_of_inputs_and_outputs() -> None:
    a, b, c = keras.Input((2,), name="first"), keras.Input((3,)), keras.Input((4,))
    x, y = L.Dense(5, name="x")(a), L.Dense(7, name="y")(L.Concatenate()([b, c]))
    joined = L.Concatenate()([y, x])
    outputs = {"two": [L.Dense(2)(joined), x], "one": L.Dense(1, name="one")(y)}
    model = keras.Model({"first": a, "rest": [c, b]}, outputs)
    assert groups(model) == {("y",): 7}
    removed, smaller = prune(model, "y", [2, 6])
    assert removed["dense/kernel 0"] == removed["one/kernel 0"] == [2, 6]
    assert list(smaller.output) == list(model.output) and len(smaller.output["two"]) == 2
    inputs = {"first": np.ones((1, 2)), "rest": [np.ones((1, 4)), np.ones((1, 3))]}
    assert smaller(inputs)["two"][1].shape == (1, 5)


def test_an_output_that_is_read_further_is_fixed() -> None:
    inputs = keras.Input((2,))
    x = L.Dense(3, name="x")(inputs)
    y = L.ReLU(name="y")(x)
    model = keras.Model(inputs, [y, L.Dense(2)(y)])
    assert groups(model) == {}
    with pytest.raises(FrozenChannelError, match="an output of the model"):
        ridurre.DependencyGraph(model).get_pruning_plan("x", [0])


def test_a_sparse_input_stays_sparse() -> None:
    import tensorflow as tf

    inputs = keras.Input((4,), sparse=True, name="words")
    x = L.Dense(5, activation="relu", name="x")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("x", [1, 3])
    smaller = plan.exec()
    assert smaller.inputs[0].sparse and smaller.inputs[0].name == "words"
    words = tf.sparse.from_dense([[1.0, 0, 0, 2], [0, 0, -1, 0]])
    assert ridurre.verify(model, smaller, plan, inputs=words) <= 1e-4


def test_an_embedding_makes_channels() -> None:
    inputs = keras.Input((4,), dtype="int32")
    x = L.Embedding(11, 5, name="words")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Conv1D(3, 2, name="conv")(x))))
    assert groups(model) == {("words",): 5, ("conv",): 3}
    removed, smaller = prune(model, "words", [1, 3])
    assert removed == {"words/embeddings 1": [1, 3], "conv/kernel 1": [1, 3]}
    assert smaller.get_layer("words").output_dim == 3


def test_a_group_of_another_graph_is_refused() -> None:
    """As when the groups from before the last step are used for the next one."""
    model = two_residual_blocks()
    first = ridurre.DependencyGraph(model)
    smaller = first.get_pruning_plan("stem", [0]).exec()
    for other in (smaller, unet()):
        with pytest.raises(RequestError, match="graph"):
            ridurre.DependencyGraph(other).get_pruning_plan(first.groups[1], [1])


# --- rules of one's own ------------------------------------------------------------------------


class Halve(L.Layer):
    """Keeps the even channels: no rule describes it, and its code is not to be looked into."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],))

    def call(self, x):
        self.last = x * self.scale  # code that keeps its tensors could compute anything
        return self.last[..., ::2]


class HalveRule(ridurre.Rule):
    """Right only because a channel and its odd neighbour go together."""

    def flow(self, call, space):
        labels = call.x.labels
        space.tie(labels[..., ::2], labels[..., 1::2])
        space.own(call.operation.scale, 0, ridurre.graph.along(labels, -1), "channel")
        return labels[..., ::2]


class UntiedRule(ridurre.Rule):
    def flow(self, call, space):
        space.own(call.operation.scale, 0, ridurre.graph.along(call.x.labels, -1), "channel")
        return call.x.labels[..., ::2]


class TooWideRule(ridurre.Rule):
    def flow(self, call, space):
        return call.x.labels  # twice as many as the layer's outputs


class ForgetfulRule(ridurre.Rule):
    def flow(self, call, space):
        return call.x.labels[..., ::2]  # and not a word of the weight


@pytest.fixture
def halving() -> Iterator[keras.Model]:
    inputs = keras.Input((2, 2, 2))
    x = Halve(name="halve")(L.Conv2D(6, 1, name="conv")(inputs))
    yield keras.Model(inputs, head(x))
    if Halve in ridurre.graph.rules.rules():
        ridurre.unregister_rule(Halve)


def test_a_rule_of_ones_own(halving: keras.Model) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = ridurre.DependencyGraph(halving)
        assert graph.barriers == {"halve": "Halve"} and not graph.removable("conv").any()
        with pytest.raises(FrozenChannelError, match=r"'conv' \(Conv2D\).*no rule.*'halve'.*Halve"):
            graph.get_pruning_plan("conv", [0])
        assert graph.groups == []
    assert len(caught) == 1 and "'halve' (Halve)" in str(caught[0].message)
    ridurre.register_rule(Halve)(HalveRule)
    assert ridurre.DependencyGraph(halving).barriers == {}
    assert groups(halving) == {("conv",): 3}
    removed, _ = prune(halving, "conv", [2])
    assert removed["conv/kernel 3"] == removed["halve/scale 0"] == [2, 3]
    assert removed["head/kernel 0"] == [1]


def test_a_rule_that_lies_is_found(halving: keras.Model) -> None:
    randomise(halving)
    before = snapshot(halving)
    ridurre.register_rule(Halve)(TooWideRule)
    with pytest.raises(RuleError, match=r"TooWideRule.flow.*'halve' \(Halve\)"):
        ridurre.DependencyGraph(halving)
    ridurre.unregister_rule(Halve)
    ridurre.register_rule(Halve)(ForgetfulRule)
    plan = ridurre.DependencyGraph(halving).get_pruning_plan("conv", [2])
    with pytest.raises(RuleError, match=r"ForgetfulRule is wrong about 'halve' \(Halve\)"):
        plan.exec()
    ridurre.unregister_rule(Halve)
    ridurre.register_rule(Halve)(UntiedRule)  # every shape fits, so only numbers can tell
    plan = ridurre.DependencyGraph(halving).get_pruning_plan("conv", [0, 3])
    with pytest.raises(VerificationError):
        ridurre.verify(halving, plan.exec(), plan)
    assert snapshot(halving) == before


def test_the_rule_that_lies_is_named_and_not_the_next_layers(halving: keras.Model) -> None:
    """Without channel 2, `halve` gives three channels and not the two that its rule promised."""
    ridurre.register_rule(Halve)(UntiedRule)
    plan = ridurre.DependencyGraph(halving).get_pruning_plan("conv", [2])
    with pytest.raises(RuleError, match=r"UntiedRule.*'halve' \(Halve\)"):
        plan.exec()


def test_a_class_has_one_rule(halving: keras.Model) -> None:
    ridurre.register_rule(Halve)(HalveRule)
    with pytest.raises(ValueError, match=r"Halve.*already has a rule, HalveRule.*unregister_rule"):
        ridurre.register_rule(Halve)(TooWideRule)
    with pytest.raises(ValueError, match="already has a rule"):
        ridurre.register_rule("Transpose")(TooWideRule)


# --- what survives -----------------------------------------------------------------------------


def test_everything_but_sizes_stays_in_the_configuration() -> None:
    regular = {"kernel_regularizer": keras.regularizers.L1L2(1e-3, 1e-4)}
    bounded = {"bias_constraint": keras.constraints.NonNeg(), "kernel_initializer": "he_normal"}
    inputs = keras.Input((4, 4, 2), name="picture")
    x = L.Conv2D(5, 3, padding="same", **regular, **bounded, name="a")(inputs)
    x = L.BatchNormalization(momentum=0.7, beta_initializer="ones", name="a_bn")(x)
    x = L.DepthwiseConv2D(3, depthwise_constraint="max_norm", name="depthwise")(x)
    x = L.Conv2DTranspose(3, 2, 2, activation="gelu", activity_regularizer="l2", name="up")(x)
    model = keras.Model(inputs, head(x), name="network")
    randomise(model)
    _, smaller = prune(model, {"a": [0, 4], "up": [1]})
    assert smaller.name == "network"
    for old, new in zip(model.layers, smaller.layers, strict=True):
        assert old is not new
        assert plain(old) == plain(new)
    assert isinstance(smaller.get_layer("a").kernel.regularizer, keras.regularizers.L1L2)
    assert isinstance(smaller.get_layer("a").bias.constraint, keras.constraints.NonNeg)


def plain(layer: keras.Layer) -> str:
    config = layer.get_config()
    return json.dumps({k: v for k, v in config.items() if k != "filters"}, default=str)


def test_flags_inside_a_frozen_backbone_stay() -> None:
    backbone = inner("backbone")
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, head(bn(backbone(inputs), "bn")))
    backbone.trainable = False
    backbone.get_layer("out").trainable = True
    _, smaller = prune(model, {"backbone/conv": [0], "backbone/out": [3]})
    copy = smaller.get_layer("backbone")
    assert (backbone.trainable, copy.trainable) == (False, False)
    for old, new in zip(backbone.layers, copy.layers, strict=True):
        assert (new.name, new.trainable) == (old.name, old.trainable)
    names = [v.path for v in model.trainable_variables]
    assert [v.path for v in smaller.trainable_variables] == names


def bn(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return L.BatchNormalization(name=name)(x)


LOAD = """
import sys
from pathlib import Path
import keras, numpy as np
for file in sorted(Path(sys.argv[1]).glob("*.keras")):
    data = np.load(file.with_suffix(".npz"))
    outputs = keras.tree.flatten(keras.saving.load_model(file)(data["x"], training=False))
    for i, y in enumerate(outputs):
        np.testing.assert_allclose(y, data[f"y{i}"], rtol=1e-5, atol=1e-6)
    print(file.stem)
assert "ridurre" not in sys.modules
"""


def test_saved_models_need_no_ridurre(tmp_path: Path) -> None:
    for name, build in NETWORKS.items():
        model = build()
        randomise(model)
        graph = ridurre.DependencyGraph(model)
        smaller = graph.get_pruning_plan({g: [0] for g in graph.groups}).exec()
        x = np.random.default_rng(0).normal(size=(2, *smaller.inputs[0].shape[1:]))
        outputs = keras.tree.flatten(smaller(x, training=False))
        np.savez(tmp_path / f"{name}.npz", x=x, **{f"y{i}": y for i, y in enumerate(outputs)})
        smaller.save(tmp_path / f"{name}.keras")
    run = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(NETWORKS)


# --- odds and ends -----------------------------------------------------------------------------


def test_a_nested_model_takes_a_dictionary_in_any_order() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    joined = L.Concatenate()([a, b])
    inner = keras.Model({"b": b, "a": a}, L.Dense(2, name="read")(joined), name="inner")
    inputs = keras.Input((4,))
    x, y = L.Dense(3, name="x")(inputs), L.Dense(5, name="y")(inputs)
    model = keras.Model(inputs, inner({"b": y, "a": x}))
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan({"x": [1], "y": [0, 4]})
    assert plan.removed["read/kernel"][0].tolist() == [1, 3, 7]
    assert ridurre.verify(model, plan.exec(), plan) <= 1e-4


def test_trainable_flags_stay_where_they_were_when_an_operation_is_added() -> None:
    """What is left of a stride can be uneven; choosing it takes one more operation."""
    inputs = keras.Input((4,))
    q = L.Dense(3, name="q", trainable=False)(inputs)
    q = L.Dense(3, name="q_out")(L.ReLU()(q))
    x = L.Dense(7, name="x")(inputs)
    model = keras.Model(inputs, [q, L.Dense(3, name="x_out", trainable=False)(x[:, ::2])])
    smaller = ridurre.DependencyGraph(model).get_pruning_plan("x", [2]).exec()
    flags = {layer.name: layer.trainable for layer in model.layers}
    assert {layer.name: layer.trainable for layer in smaller.layers} == flags


def test_a_shared_flatten_takes_tensors_of_different_sizes() -> None:
    flatten = L.Flatten()
    inputs = keras.Input((4, 3))
    x, y = L.Conv1D(3, 2, name="x")(inputs), L.Conv1D(2, 1, name="y")(inputs)
    model = keras.Model(inputs, [L.Dense(2)(flatten(x)), L.Dense(3)(flatten(y))])
    randomise(model)
    assert sorted(g.size for g in ridurre.DependencyGraph(model).groups) == [2, 3]
    assert check_model(model) == 6 + 2


def test_functions_of_ones_own_are_carried_over() -> None:
    def swish(x):
        return x * keras.ops.sigmoid(2 * x)

    def ones(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    inputs = keras.Input((3,))
    x = L.Dense(5, name="free")(inputs)
    x = L.Dense(4, activation=swish, kernel_initializer=ones, name="own")(x)
    model = keras.Model(inputs, L.Dense(2, activation=lambda x: 2 * x)(x))
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("free", [0, 3])
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    assert smaller.get_layer("own").activation is swish
    assert smaller.get_layer("own").kernel_initializer is ones
    assert np.shape(smaller.get_layer("own").kernel) == (3, 4)
