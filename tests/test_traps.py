"""Mistakes that other pruning tools make, and complaints of their users: one test each.

Where a network is small, `check_model` removes every subset of the channels of every layer and
compares with the original whose removed slices are zero.
"""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

import ridurre
from ridurre.testing import check_model, randomise, snapshot

pytestmark = pytest.mark.core
layers, ops = keras.layers, keras.ops


def network(inputs: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.Model:
    model = keras.Model(inputs, outputs)
    randomise(model)
    return model


def head(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))


def halve(model: keras.Model) -> tuple[ridurre.PruningPlan, keras.Model]:
    """Remove the first half of every group."""
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan({g: range(g.size // 2) for g in graph.groups})
    return plan, plan.exec()


# --- silently wrong networks -------------------------------------------------------------------


def test_permute_flatten_dense() -> None:
    inputs = keras.Input((2, 3, 2))
    x = layers.Conv2D(5, 1)(inputs)
    x = layers.Permute((3, 1, 2))(x)
    assert check_model(network(inputs, layers.Dense(3)(layers.Flatten()(x)))) == 30


def test_channel_shuffle_after_a_grouped_convolution() -> None:
    inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(6, 1)(inputs)
    x = layers.Conv2D(6, 1, groups=2)(x)
    x = ops.reshape(x, (-1, 2, 2, 2, 3))
    x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 2, 2, 6))
    check_model(network(inputs, head(layers.Conv2D(3, 1)(x))))


def test_split_branches_in_another_order() -> None:
    inputs = keras.Input((2, 2, 3))
    a, b, c = ops.split(layers.Conv2D(7, 1)(inputs), (2, 5), axis=-1)
    x = layers.Concatenate()([c, layers.Conv2D(3, 1)(b), a])
    check_model(network(inputs, head(layers.Conv2D(3, 1)(x))))


def test_attention_is_not_cut_across_heads() -> None:
    inputs = keras.Input((4, 3))
    x = layers.Dense(6, name="width")(inputs)
    y = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    model = network(inputs, layers.Dense(2)(layers.Flatten()(y)))
    graph = ridurre.DependencyGraph(model)
    heads = next(g for g in graph.groups if g.size == 2)
    attention = graph.get_pruning_plan(heads, [0]).exec().get_layer("attention")
    assert (attention.num_heads, attention.key_dim) == (1, 3)
    check_model(model)


def test_a_mean_over_channels_does_not_couple_what_it_is_added_to() -> None:
    inputs = keras.Input((2, 2, 3))
    gate = ops.mean(layers.Conv2D(4, 1, name="averaged")(inputs), axis=-1, keepdims=True)
    x = layers.Conv2D(5, 1, name="free")(inputs) + gate
    model = network(inputs, head(layers.Conv2D(3, 1)(x)))
    graph = ridurre.DependencyGraph(model)
    assert graph.removable("free").all()
    assert not graph.removable("averaged").any()
    check_model(model)


def test_a_residual_on_the_models_input_is_fixed() -> None:
    inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(3, 1, name="tied")(inputs) + inputs
    graph = ridurre.DependencyGraph(network(inputs, head(layers.Conv2D(5, 1)(x))))
    with pytest.raises(ridurre.RidurreError, match="'tied'.*cannot be removed"):
        graph.get_pruning_plan("tied", [1])


def test_a_sum_that_is_the_output_is_fixed() -> None:
    inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(5, 1, name="a")(inputs)
    graph = ridurre.DependencyGraph(network(inputs, x + layers.Conv2D(5, 1, name="b")(inputs)))
    with pytest.raises(ridurre.RidurreError, match="an output of the model"):
        graph.get_pruning_plan("b", [1])


@pytest.mark.parametrize("indices", [[5], [-1], [2, 2]])
def test_indices_out_of_range_or_repeated(indices: list[int]) -> None:
    inputs = keras.Input((2, 2, 3))
    model = network(inputs, head(layers.Conv2D(5, 1, name="conv")(inputs)))
    with pytest.raises(ridurre.RidurreError, match=r"out of range|Repeated"):
        ridurre.DependencyGraph(model).get_pruning_plan("conv", indices)


def test_unequal_votes_at_an_addition() -> None:
    """Tied convolutions that are cut independently make another network."""

    class Rotating(ridurre.BasePruning):
        def run_pruning_for_conv2d_layer(self, pruning_factor, layer, layer_weight_mtx):
            return [int(layer.name[-1])]

    inputs = keras.Input((2, 2, 3))
    parts = [layers.Conv2D(5, 1, name=f"conv_{i}")(inputs) for i in range(3)]
    model = network(inputs, head(layers.Conv2D(3, 1, name="conv_3")(sum(parts))))
    pruning = Rotating(0.5, lambda m: None, None, 0, 0, 1, None, layers=["conv_0", "conv_1"])
    smaller, _ = pruning.run_pruning(model)
    assert [smaller.get_layer(f"conv_{i}").filters for i in range(3)] == [4, 4, 4]


def test_batch_norm_without_scale_or_centre() -> None:
    inputs = keras.Input((2, 2, 3))
    x = layers.BatchNormalization(scale=False)(layers.Conv2D(3, 1)(inputs))
    x = layers.BatchNormalization(center=False)(layers.Conv2D(4, 1)(layers.ReLU()(x)))
    assert check_model(network(inputs, head(layers.Conv2D(3, 1)(x))))


def test_custom_weights_are_not_initialised_again() -> None:
    model = keras.applications.ConvNeXtTiny(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
    )
    randomise(model)
    name = next(x.name for x in model.layers if type(x).__name__ == "LayerScale")
    graph = ridurre.DependencyGraph(model)
    group = next(g for g in graph.groups if name in g.layers)
    smaller = graph.get_pruning_plan(group, [0, 2]).exec()
    before, after = (m.get_layer(name).gamma.numpy() for m in (model, smaller))
    np.testing.assert_array_equal(after, np.delete(before, [0, 2]))


def test_weights_are_found_whatever_they_are_called() -> None:
    class Scale(layers.Layer):
        def build(self, shape):
            self.a = self.add_weight(name="a", shape=(shape[-1],))

        def call(self, x):
            return x * self.a

    class ScaleRule(ridurre.Rule):
        def flow(self, call, space):
            space.own(call.operation.a, 0, call.x.labels.reshape(-1, 1), "channel")
            return call.x.labels

    ridurre.register_rule(Scale)(ScaleRule)
    try:
        inputs = keras.Input((2, 2, 3))
        model = network(inputs, head(Scale()(layers.Conv2D(5, 1, name="conv")(inputs))))
        plan = ridurre.DependencyGraph(model).get_pruning_plan("conv", [1])
        assert ridurre.verify(model, plan.exec(), plan) <= 1e-4
    finally:
        ridurre.unregister_rule(Scale)


# --- side effects and swallowed errors ---------------------------------------------------------


def test_an_exception_is_not_swallowed() -> None:
    def broken(model: keras.Model) -> None:
        raise KeyError("the user's own mistake")

    inputs = keras.Input((2, 2, 3))
    model = network(inputs, head(layers.Conv2D(5, 1)(inputs)))
    pruning = ridurre.RandomFilterPruning(0.4, broken, None, 0)
    with pytest.raises(KeyError, match="the user's own mistake"):
        pruning.run_pruning(model)
    assert pruning.model is model


def test_settings_of_one_model_do_not_reach_the_next() -> None:
    def build() -> keras.Model:
        inputs = keras.Input((2, 2, 3))
        return network(inputs, head(layers.Conv2D(5, 1, name="conv")(inputs)))

    assert not ridurre.DependencyGraph(build(), protect="conv").groups
    assert len(ridurre.DependencyGraph(build()).groups) == 1


def test_training_mode_and_frozen_weights_stay() -> None:
    inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(5, 1, name="frozen", trainable=False)(inputs)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    model = network(inputs, head(layers.Conv2D(3, 1, name="free")(x)))
    before = snapshot(model)
    _, smaller = halve(model)
    assert snapshot(model) == before
    assert not smaller.get_layer("frozen").trainable
    assert [v.name for v in smaller.trainable_variables] == [
        v.name for v in model.trainable_variables
    ]


def test_a_plan_can_be_replayed() -> None:
    inputs = keras.Input((2, 2, 3))
    model = network(inputs, head(layers.Conv2D(7, 1)(layers.Conv2D(5, 1)(inputs))))
    plan, smaller = halve(model)
    again = ridurre.apply(model, ridurre.PruningPlan.from_dict(plan.to_dict()))
    for a, b in zip(smaller.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what users of other tools report ----------------------------------------------------------


def test_every_pointwise_convolution_of_mobilenet_is_cut() -> None:
    model = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=7)
    _, smaller = halve(model)
    before = [x.filters for x in model.layers if type(x) is layers.Conv2D]
    after = [x.filters for x in smaller.layers if type(x) is layers.Conv2D]
    assert [b - a for a, b in zip(after[:-1], before[:-1], strict=True)] == [
        n // 2 for n in before[:-1]
    ]


def test_the_file_gets_smaller(tmp_path: Path) -> None:
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(64, 3, padding="same")(inputs)
    model = network(inputs, head(layers.Conv2D(64, 3, padding="same")(x)))
    sizes = []
    for name, each in (("before", model), ("after", halve(model)[1])):
        each.save(tmp_path / f"{name}.keras")
        sizes.append(os.path.getsize(tmp_path / f"{name}.keras"))
    assert sizes[1] < 0.5 * sizes[0]


def test_a_protected_layer_is_not_pruned() -> None:
    inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(5, 1, name="kept")(inputs)
    model = network(inputs, head(layers.Conv2D(7, 1, name="cut")(x)))
    pruning = ridurre.RandomFilterPruning(
        0.5, lambda m: None, None, 0, maximum_prune_iterations=1, protect="kept", seed=0
    )
    smaller, _ = pruning.run_pruning(model)
    assert smaller.get_layer("kept").filters == 5
    assert smaller.get_layer("cut").filters == 4


def test_lambda_relu_depthwise_and_separable_layers() -> None:
    inputs = keras.Input((4, 4, 3))
    x = layers.Lambda(lambda t: t * 2.0)(inputs)
    x = layers.ReLU(max_value=6.0)(layers.SeparableConv2D(3, 1)(x))
    x = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(4, 1)(x))
    assert check_model(network(inputs, head(x)))


def test_open_height_and_width() -> None:
    inputs = keras.Input((None, None, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(5, 3, padding="same")(inputs))
    x = layers.Add()([layers.Conv2D(3, 1)(x), layers.Conv2D(3, 3, padding="same")(x)])
    assert check_model(network(inputs, head(x)))


def test_a_nested_backbone_with_a_new_head() -> None:
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35
    )
    backbone.trainable = False
    inputs = keras.Input((32, 32, 3))
    model = network(inputs, head(backbone(inputs)))
    plan, smaller = halve(model)
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    assert smaller.count_params() < 0.4 * model.count_params()
    assert len(smaller.trainable_variables) == len(model.trainable_variables) == 2
