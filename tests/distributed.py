"""Prune a distributed model on two virtual CPU devices; a script (see test_distribution.py).

Usage: distributed.py (mirrored | data | model) FOLDER, with KERAS_BACKEND and XLA_FLAGS set.
"""

import sys

import keras
import numpy as np
from builders import first, scripted

import ridurre
from ridurre.backend import to_numpy, view_of
from ridurre.errors import RequestError
from ridurre.testing import randomise, snapshot

L = keras.layers
LOSS = "sparse_categorical_crossentropy"


def build(name="shared"):
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(6, 3, name="a", kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
    x = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x))
    x = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(10, 3, name="b")(x))
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(x), name=name)
    randomise(model)
    return model


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 6, 6, 3)).astype("float32"), rng.integers(0, 3, 16)


def compile_model(model):
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS, metrics=["accuracy"])


def two_first(layer, kernel):
    return [0, 1] if kernel.shape[-1] > 2 else []


def check(model, is_distributed):
    """Score, cut, fine-tune, resume; everything has to stay distributed."""
    before = snapshot(model)
    x, y = data()

    for variable in model.variables:
        np.testing.assert_array_equal(view_of(variable), to_numpy(variable))
    plan = ridurre.DependencyGraph(model).get_pruning_plan({"a": [1, 4], "b": [0, 9]})
    cut = plan.exec()
    assert all(map(is_distributed, cut.trainable_variables))
    ridurre.verify(model, cut, plan)
    assert all(map(is_distributed, plan.exec(keep_compiled=True).trainable_variables))

    pruning = scripted(
        two_first,
        compile_fn=compile_model,
        finetune_fn=ridurre.Distillation(model, x, y, batch_size=8, verbose=0),
        epochs=1,
        rounds=1,
        seed=1,
        minimum_accuracy=0.0,
    )
    folder = sys.argv[2]
    result, _ = pruning.run_pruning(model, validation_data=(x, y), checkpoint_dir=folder)
    assert (result.get_layer("a").filters, result.get_layer("b").filters) == (4, 8)
    assert all(map(is_distributed, result.trainable_variables))
    again, _ = pruning.run_pruning(model, validation_data=(x, y), checkpoint_dir=folder)
    assert again is not result
    assert all(map(is_distributed, again.trainable_variables))
    for one, two in zip(result.weights, again.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))

    result.fit(x, y, epochs=1, verbose=0, callbacks=[ridurre.BatchNormSparsity(1e-3)])
    assert all(map(is_distributed, result.trainable_variables))
    plan = ridurre.DependencyGraph(result).get_pruning_plan("b", [3, 5])
    trained = plan.exec(keep_compiled=True)
    assert all(map(is_distributed, trained.trainable_variables))
    assert to_numpy(trained.optimizer.iterations) == to_numpy(result.optimizer.iterations) > 0
    for use_ema in (False, True):
        check_masks(model, is_distributed, use_ema)
    assert snapshot(model) == before
    return check_losses(model, x, y)


def check_masks(model, is_distributed, use_ema):
    """What is pruned before or during training stays zero on every device."""
    for start, callback in [
        (0.6, ridurre.KeepZeros()),
        (0.3, ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6), begin=1)),
    ]:
        sparse = ridurre.prune(ridurre.LevelPrune(start), model)
        values = [to_numpy(v) for v in sparse.trainable_variables]
        with ridurre.surgery.distribution_of(sparse):
            sparse.compile(keras.optimizers.AdamW(0.05, use_ema=use_ema), LOSS)
        sparse.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[callback])
        assert all(map(is_distributed, sparse.trainable_variables))
        for variable, value in zip(sparse.trainable_variables, values, strict=True):
            assert not np.array_equal(value, to_numpy(variable))
            if len(variable.shape) > 1:
                count = int(0.6 * value.size + 0.5)
                assert [int((v == 0).sum()) for v in replicas(variable)] == [count] * 2


def replicas(variable):
    """A variable's value on both devices, or twice where it is one."""
    values = getattr(variable.value, "values", None)
    return [np.asarray(v) for v in values] if values else [to_numpy(variable)] * 2


def check_losses(model, x, y):
    """Losses of one batch, to be held against those of a single device."""
    copy = ridurre.surgery.duplicate(model)
    copy.get_layer("norm").trainable = False  # its statistics would be those of a replica
    with ridurre.surgery.distribution_of(copy):
        copy.compile(keras.optimizers.SGD(0.1), LOSS)
    distill = ridurre.Distillation(
        model, x, y, alpha=0.3, batch_size=16, verbose=0, callbacks=[ridurre.GroupSparsity(0.05)]
    )
    return distill(copy, 0, 2).history["loss"]


def mirrored():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    alone = check_losses(build("alone"), *data())
    with strategy.scope():
        model = build()
    # Neither of the calls below is made within the scope.
    together = check(model, lambda v: isinstance(v.value, tf.distribute.DistributedValues))
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def sharded(kind):
    alone = check_losses(build("alone"), *data())
    devices = keras.distribution.list_devices()
    if kind == "data":
        distribution = keras.distribution.DataParallel(devices=devices)
    else:
        mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout["[ab]/kernel"] = (None, None, None, "model")
        distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)
    model = build()

    def is_distributed(variable):
        sharding = variable.value.sharding
        split = kind == "model" and variable.path in ("a/kernel", "b/kernel")
        return len(sharding.device_set) == 2 and sharding.is_fully_replicated != split

    np.testing.assert_allclose(check(model, is_distributed), alone, rtol=1e-4)
    if kind == "model":
        check_odd(model)


def check_odd(model):
    try:
        scripted(first).run_pruning(model)
    except RequestError as error:
        assert "5 channels along axis 3 of 'a/kernel', which is sharded over 2" in str(error)
    else:
        raise SystemExit("an odd number of channels was shared out among two devices")


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    mirrored() if sys.argv[1] == "mirrored" else sharded(sys.argv[1])
    print("all well")
