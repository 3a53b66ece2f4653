"""What a compiled model carries: optimizer state, metrics, loss; and state besides variables."""

from typing import Any

import keras
import numpy as np
import pytest

import ridurre
import ridurre.testing
from ridurre.backend import to_numpy
from ridurre.backend.training import optimizer_slots

layers = keras.layers
REMOVED = [1, 3]
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "adadelta": lambda: keras.optimizers.Adadelta(0.5),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "ftrl": lambda: keras.optimizers.Ftrl(0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


def trained(optimizer: Any) -> keras.Model:
    """A small model after three steps, so that every slot of its optimizer holds something."""
    model = keras.Sequential(
        [
            keras.Input((5, 5, 3)),
            layers.Conv2D(5, 3, name="cut"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(7, 3, name="next", activation="tanh"),
            layers.Flatten(),
            layers.Dense(2, name="head"),
        ]
    )
    model.compile(optimizer, "mse", metrics=["mae", keras.metrics.RootMeanSquaredError("rmse")])
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(12, 5, 5, 3)), rng.normal(size=(12, 2)), batch_size=4, verbose=0)
    return model


def without(value: np.ndarray, path: str) -> np.ndarray:
    """By hand: a weight of this name (or an optimizer's array for it) after the cut."""
    for name, axis in (("cut/kernel", 3), ("cut/bias", 0), ("norm/", 0), ("next/kernel", 2)):
        if name in path:
            return np.delete(value, REMOVED, axis)
    return value


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_is_cut_like_the_weights(name: str) -> None:
    model = trained(OPTIMIZERS[name]())
    before = [to_numpy(v).copy() for v in model.optimizer.variables]
    plan = ridurre.DependencyGraph(model).get_pruning_plan("cut", REMOVED)
    smaller = plan.exec(keep_compiled=True)
    slots = optimizer_slots(model.optimizer)
    pairs = list(zip(model.optimizer.variables, smaller.optimizer.variables, strict=True))
    for old, new in pairs:
        expected = to_numpy(old)
        if id(old) in slots:
            index, lacking = slots[id(old)]
            weight = model.trainable_variables[index]
            if lacking is not None:
                expected = np.repeat(
                    np.expand_dims(expected, lacking), weight.shape[lacking], lacking
                )
            expected = without(expected, weight.path)
            expected = expected if lacking is None else expected.take(0, lacking)
        np.testing.assert_array_equal(to_numpy(new), expected)
    assert name == "sgd" or len(slots) >= len(model.trainable_variables)
    for value, variable in zip(before, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value, to_numpy(variable))


def test_training_continues_without_a_jump() -> None:
    """Channels that were dead all along: the smaller model trains exactly like the larger one."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 5, 5, 3)), rng.normal(size=(12, 2))
    model = trained(keras.optimizers.SGD(0.05, momentum=0.9))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("cut", REMOVED)
    kernel = to_numpy(model.get_layer("next").kernel).copy()
    kernel[:, :, REMOVED] = 0
    model.get_layer("next").kernel.assign(kernel)
    for layer, weight in (("next", "kernel"), ("norm", "gamma"), ("norm", "beta")):
        variable = getattr(model.get_layer(layer), weight)
        index = [id(v) for v in model.trainable_variables].index(id(variable))
        momentum = model.optimizer.momentums[index]
        value = to_numpy(momentum).copy()
        np.moveaxis(value, 2 if weight == "kernel" else 0, 0)[REMOVED] = 0
        momentum.assign(value)
    for weight in ("gamma", "beta"):  # a dead channel has no gradient either
        variable = getattr(model.get_layer("norm"), weight)
        value = to_numpy(variable).copy()
        value[REMOVED] = 0
        variable.assign(value)
    smaller = plan.exec(keep_compiled=True)
    losses = [m.train_on_batch(x, y) for m in (model, smaller) for _ in range(3)]
    assert losses[0] == pytest.approx(losses[3], rel=1e-5)
    np.testing.assert_allclose(
        to_numpy(smaller.get_layer("head").kernel),
        to_numpy(model.get_layer("head").kernel),
        atol=1e-5,
    )


def test_loss_metrics_and_settings_are_kept_and_not_shared() -> None:
    def my_loss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    model = trained("adam")
    metric = keras.metrics.MeanAbsoluteError("mine")
    model.compile("adam", my_loss, metrics=[metric], steps_per_execution=3)
    smaller = ridurre.DependencyGraph(model).get_pruning_plan("cut", [0]).exec(keep_compiled=True)
    x, y = np.ones((4, 5, 5, 3)), np.ones((4, 2))
    result = smaller.evaluate(x, y, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(result["mine"])
    assert smaller.steps_per_execution == 3
    assert smaller.optimizer is not model.optimizer
    assert float(to_numpy(metric.result())) == 0.0  # the original's metric has seen nothing


def test_apply_keeps_compiled_too_and_default_is_not_to() -> None:
    model = trained("adam")
    plan = ridurre.DependencyGraph(model).get_pruning_plan("cut", [0])
    assert not plan.exec().compiled
    assert ridurre.apply(model, plan, keep_compiled=True).optimizer.built


def test_a_model_that_is_not_compiled_stays_so() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2)])
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", [0])
    assert not plan.exec(keep_compiled=True).compiled


def test_an_adapted_normalization_keeps_its_statistics() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 7, (32, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential(
        [keras.Input((4,)), normalization, layers.Dense(5, name="a"), layers.Dense(2)]
    )
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", [0])
    assert ridurre.verify(model, plan.exec(), plan, inputs=x) <= 1e-5


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float64"])
def test_dtype_policies_survive(policy: str) -> None:
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(5, 3, dtype=policy, name="a")(inputs)
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Conv2D(3, 2)(x)))
    model = keras.Model(inputs, outputs)
    ridurre.testing.randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", [2])
    smaller = plan.exec()
    assert smaller.get_layer("a").dtype_policy.name == policy
    assert smaller.get_layer("a").kernel.dtype == model.get_layer("a").kernel.dtype
    ridurre.verify(model, smaller, plan)


def test_lora_and_quantised_layers_are_refused_clearly() -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((8,)), layers.Dense(6, name="a"), layers.Dense(2)])

    with_lora = build()
    with_lora.get_layer("a").enable_lora(2)
    with pytest.raises(ridurre.RidurreError, match="LoRA is enabled on the layer 'a'.*Merge it"):
        ridurre.DependencyGraph(with_lora)
    quantised = build()
    quantised.get_layer("a").quantize("int8")
    with pytest.raises(ridurre.RidurreError, match="quantised.*Prune the float model first"):
        ridurre.DependencyGraph(quantised)
