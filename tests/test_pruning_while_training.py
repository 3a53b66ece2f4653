"""Single weights are pruned while `fit` runs, and what is pruned stays pruned."""

import keras
import numpy as np
import pytest
from builders import L

import ridurre
from ridurre.backend.training import attach_state
from ridurre.errors import NothingToPruneError, RequestError, RidurreWarning, UnknownLayerError
from ridurre.testing import snapshot
from ridurre.training.rewinding import ReplayedSchedule

pytestmark = pytest.mark.core
optimizers = keras.optimizers
BACKEND = keras.backend.backend()
SAMPLES = 24


def value_of(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")


def kernels(model):
    """Copies of the kernels, also in the middle of an epoch."""
    attach_state(model)
    return {v.path: value_of(v).copy() for v in model.trainable_variables if len(v.shape) > 1}


def zeros(model):
    return {path: value == 0 for path, value in kernels(model).items()}


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[p], two[p]) for p in one)


def counts(model):
    return [int(z.sum()) for z in zeros(model).values()]


def network(dtype=None):
    """Kernels of 3·5 and 5·7 weights."""
    inputs = keras.Input((3,))
    x = L.Dense(5, activation="tanh", dtype=dtype, name="a")(inputs)
    return keras.Model(inputs, L.Dense(7, dtype=dtype, name="b")(x))


def pictures_network():
    inputs = keras.Input((4, 4, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(5, 3, name="a")(inputs))
    x = L.DepthwiseConv2D(2, name="depth")(x)
    return keras.Model(inputs, L.Dense(7, name="b")(L.Flatten()(x)))


def data(model):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    return x, rng.normal(size=(SAMPLES, 7)).astype("float32")


def fit(model, *callbacks, epochs=1, batch_size=8, **options):
    x, y = data(model)
    return model.fit(
        x, y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[*callbacks], **options
    )


def still(model):
    """Compiled so that nothing moves; not traced, which takes longer than the steps."""
    model.compile(optimizers.SGD(0.0), "mse", run_eagerly=True)
    return model


class Watch(keras.callbacks.Callback):
    """What something says, at the end of every epoch or of every step."""

    def __init__(self, what, steps=False):
        super().__init__()
        self.what, self.steps, self.seen = what, steps, []

    def on_train_batch_end(self, batch, logs=None):
        if self.steps:
            attach_state(self.model)
            self.seen.append(self.what(self.model))

    def on_epoch_end(self, epoch, logs=None):
        if not self.steps:
            self.seen.append(self.what(self.model))


def several():
    """One optimizer for matrices, one for the rest."""
    one, other = optimizers.Adam(0.05), optimizers.SGD(0.1, momentum=0.9)
    return lambda variable: one if len(variable.shape) > 1 else other


OPTIMIZERS = {
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.05),
    "adamw": lambda: optimizers.AdamW(0.05, weight_decay=0.1),
    "accumulation": lambda: optimizers.Adam(0.05, gradient_accumulation_steps=2),
    "averages": lambda: optimizers.Adam(0.05, use_ema=True),
    "averages often": lambda: optimizers.Adam(0.05, use_ema=True, ema_overwrite_frequency=2),
    "several": lambda: optimizers.MultiOptimizer(several()),
}


# --- masks are kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_after_every_step(name):
    if name == "several" and not hasattr(optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    model = ridurre.prune(ridurre.LevelPrune(0.6), network())
    model.compile(OPTIMIZERS[name](), "mse")
    before, values = zeros(model), kernels(model)
    watch = Watch(zeros, steps=True)
    fit(model, ridurre.KeepZeros(), watch, epochs=2)
    assert len(watch.seen) == 6
    assert all(same(seen, before) for seen in [*watch.seen, zeros(model)])
    assert not any(np.array_equal(values[p], v) for p, v in kernels(model).items())


@pytest.mark.skipif(BACKEND == "torch", reason="Keras compiles with torch.compile there")
def test_masks_hold_under_jit_compile():
    model = ridurre.prune(ridurre.LevelPrune(0.6), pictures_network())
    model.compile(optimizers.AdamW(0.05, weight_decay=0.1), "mse", jit_compile=True)
    before = zeros(model)
    fit(model, ridurre.KeepZeros())
    assert same(zeros(model), before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_masks_hold_in_mixed_precision(policy):
    model = ridurre.prune(ridurre.LevelPrune(0.6), network(policy))
    model.compile(optimizers.SGD(0.1, momentum=0.9), "mse")  # Adam's β₂ is 1 in bfloat16
    before, values = zeros(model), kernels(model)
    fit(model, ridurre.KeepZeros())
    assert same(zeros(model), before)
    assert not any(np.array_equal(values[p], v) for p, v in kernels(model).items())


def test_pruning_in_the_middle_reaches_the_moving_averages():
    model = network()
    model.compile(optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9), "mse")
    fit(model, ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6), begin=1), epochs=2)
    assert counts(model) == [9, 21]


def test_pruning_in_mixed_precision_with_loss_scaling():
    model = network("mixed_float16")
    model.compile(optimizers.Adam(0.05), "mse")
    fit(model, ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6), begin=1), epochs=3)
    assert counts(model) == [9, 21]


def test_after_training_everything_can_move_again_and_nothing_is_left():
    model = network()
    model.compile(optimizers.SGD(0.1), "mse")
    fit(model)  # compiled before; a stale function would know no masks
    ridurre.LevelPrune(0.6).masks(model).assign(model)
    before, attributes = zeros(model), set(vars(model)) | {"_jax_state", "_jax_state_synced"}
    fit(model, ridurre.KeepZeros())
    assert same(zeros(model), before)
    assert "apply" not in vars(model.optimizer)
    assert set(vars(model)) <= attributes
    assert all(v.constraint is None for v in model.variables)
    fit(model)
    assert not any(z.any() for z in zeros(model).values())


def test_own_constraints_hold_as_well():
    inputs = keras.Input((3,))
    outputs = L.Dense(7, kernel_constraint=keras.constraints.NonNeg(), name="a")(inputs)
    model = ridurre.prune(ridurre.LevelPrune(0.5), keras.Model(inputs, outputs))
    model.compile(optimizers.SGD(0.5), "mse")
    before = zeros(model)["a/kernel"]
    fit(model, ridurre.KeepZeros())
    after = kernels(model)["a/kernel"]
    assert (after >= 0).all()
    assert (after[before] == 0).all()
    assert isinstance(model.get_layer("a").kernel.constraint, keras.constraints.NonNeg)


class Oops(Exception):
    pass


class Break(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise Oops


@pytest.mark.parametrize(
    "callback",
    [ridurre.KeepZeros, lambda: ridurre.PruneDuringTraining(ridurre.LevelPrune(0.5))],
)
def test_an_error_in_training_leaves_nothing_behind(callback):
    model = network()
    ridurre.LevelPrune(0.5).masks(model).assign(model)
    model.compile(optimizers.SGD(0.1), "mse")
    with pytest.raises(Oops), callback() as kept:
        fit(model, kept, Break())
    assert "apply" not in vars(model.optimizer)
    fit(model)
    assert not any(z.any() for z in zeros(model).values())


def test_used_again_after_an_error_and_for_another_model():
    first, second = (ridurre.prune(ridurre.LevelPrune(0.5), network()) for _ in range(2))
    for model in (first, second):
        model.compile(optimizers.SGD(0.1), "mse")
    kept = ridurre.KeepZeros()
    with pytest.raises(Oops):
        fit(first, kept, Break())
    before = zeros(second)
    fit(second, kept)
    assert same(zeros(second), before)
    assert "apply" not in vars(first.optimizer)


def test_callback_and_context_together():
    model = ridurre.prune(ridurre.LevelPrune(0.5), network())
    model.compile(optimizers.SGD(0.1), "mse")
    before = zeros(model)
    with ridurre.keep_zeros(model):
        fit(model, ridurre.KeepZeros())
        fit(model)  # the callback has let go, the context has not
        assert same(zeros(model), before)
        model.compile(optimizers.SGD(0.1), "mse")
        fit(model)
        assert same(zeros(model), before)
    fit(model)
    assert not same(zeros(model), before)


def test_only_what_is_asked_for_is_kept():
    model = network()
    model.get_layer("a").kernel.assign(np.zeros((3, 5)))
    model.get_layer("b").kernel.assign(np.zeros((5, 7)))
    model.compile(optimizers.SGD(0.1), "mse")
    fit(model, ridurre.KeepZeros(layers="b"))
    assert counts(model)[1] == 35
    assert value_of(model.get_layer("b").bias).any()  # biases start at zero and are no kernels
    model = network()
    model.compile(optimizers.SGD(0.1), "mse")
    fit(model, ridurre.KeepZeros("all"))
    assert not value_of(model.get_layer("b").bias).any()


def test_saved_in_the_middle_loaded_and_trained_on(tmp_path):
    model = network()
    model.compile(optimizers.Adam(0.05), "mse")
    path = tmp_path / "{epoch}.keras"
    gradual = ridurre.MagnitudePercentage(0.8, "gradual", 0, 2)
    fit(model, gradual, keras.callbacks.ModelCheckpoint(path), epochs=2)
    assert "ridurre" not in str(model.get_config()) + str(model.get_compile_config())
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    before = zeros(loaded)
    assert [int(z.sum()) for z in before.values()] == [6, 14]
    fit(loaded, ridurre.KeepZeros())
    assert same(zeros(loaded), before)
    # The same callback, from where it was: what is zero stays, the rest comes on top.
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    fit(loaded, gradual, epochs=2, initial_epoch=1)
    assert counts(loaded) == [12, 28]
    assert all(z[before[p]].all() for p, z in zeros(loaded).items())
    assert same(zeros(loaded), zeros(model))


def test_a_plain_model_after_training(tmp_path):
    model = network()
    model.compile(optimizers.Adam(0.05), "mse")
    fit(model, ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert same(zeros(loaded), zeros(model))
    fit(loaded)
    assert not any(z.any() for z in zeros(loaded).values())


# --- pruning while training ----------------------------------------------------------------------

SCHEDULES = {
    "one_shot": lambda t: 1.0,
    "linear": lambda t: t,
    "geometric": lambda t: 1 - (1 - 0.8) ** t,
    "cubic": lambda t: 1 - (1 - t) ** 3,
}


def level(name, number, times):
    part = SCHEDULES[name](number / times)
    return part if name == "geometric" and number < times else 0.8 * part if number < times else 0.8


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_level_is_exact_at_every_epoch(name):
    model = network()
    model.compile(optimizers.Adam(0.05), "mse")
    callback = ridurre.PruneDuringTraining(
        ridurre.LevelPrune(0.8), begin=1, end=6, every=2, schedule=name
    )
    watch = Watch(counts)
    fit(model, callback, watch, epochs=8)
    levels = [0, *(level(name, n, 3) for n in (1, 1, 2, 2, 3, 3, 3))]
    assert watch.seen == [[int(15 * s + 0.5), int(35 * s + 0.5)] for s in levels]
    assert callback.masks.sparsity == pytest.approx(0.8)


def test_the_default_is_the_strategys_own_schedule():
    model = still(network())
    watch = Watch(counts)
    strategy = ridurre.LevelPrune(0.8, schedule="cubic")
    fit(model, ridurre.PruneDuringTraining(strategy, end=1), watch, epochs=2)
    assert watch.seen == [[int(15 * 0.7 + 0.5), int(35 * 0.7 + 0.5)], [12, 28]]


@pytest.mark.parametrize("optimizer", ["adamw", "accumulation"])
def test_by_steps(optimizer):
    model = network()
    model.compile(OPTIMIZERS[optimizer](), "mse")
    callback = ridurre.PruneDuringTraining(
        ridurre.LevelPrune(0.8), begin=1, end=5, every=2, unit="step"
    )
    watch = Watch(counts, steps=True)
    fit(model, callback, watch, epochs=3)
    a, b, c = [4, 9], [8, 19], [12, 28]
    assert watch.seen == [[0, 0], a, a, b, b, c, c, c, c]


def by_three_steps():
    """Half of it before the first step, all of it before the fourth."""
    return ridurre.PruneDuringTraining(
        ridurre.LevelPrune(0.8), begin=0, end=3, every=3, unit="step"
    )


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # that is its length
def test_by_steps_with_data_of_unknown_length():
    model, watch = network(), Watch(counts, steps=True)
    model.compile(optimizers.Adam(0.05), "mse")
    x, y = data(model)
    batches = ((x[i : i + 6], y[i : i + 6]) for i in range(0, SAMPLES, 6))
    model.fit(batches, verbose=0, shuffle=False, callbacks=[by_three_steps(), watch])
    assert watch.seen == [*[[6, 14]] * 3, [12, 28]]


def test_steps_are_counted_over_epochs_of_unknown_length():
    model, callback = still(network()), by_three_steps()
    callback.set_model(model)
    callback.set_params({"steps": None})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    for batch in range(3):
        callback.on_train_batch_begin(batch)
        assert counts(model) == [6, 14]
    callback.on_epoch_begin(1)
    assert counts(model) == [6, 14]
    callback.on_train_batch_begin(0)
    assert counts(model) == [12, 28]
    callback.on_train_end()


@pytest.mark.skipif(BACKEND == "torch", reason="Keras refuses steps_per_execution there")
def test_by_steps_with_several_steps_per_execution():
    model = network()
    model.compile(optimizers.Adam(0.05), "mse", steps_per_execution=2)
    callback = ridurre.PruneDuringTraining(
        ridurre.LevelPrune(0.8), begin=1, end=5, every=2, unit="step"
    )
    watch = Watch(counts, steps=True)
    fit(model, callback, watch, epochs=2, batch_size=4)
    a, b, c = [4, 9], [8, 19], [12, 28]
    assert watch.seen == [[0, 0], a, b, c, c, c]


def test_training_that_goes_on_catches_up():
    model = still(network())
    watch = Watch(counts)
    callback = ridurre.PruneDuringTraining(ridurre.LevelPrune(0.8), begin=0, end=3)
    fit(model, callback, watch, initial_epoch=2, epochs=5)
    assert watch.seen == [[9, 21], [12, 28], [12, 28]]


def test_what_is_zero_stays_zero_while_levels_rise():
    model = pictures_network()
    model.compile(optimizers.Adam(0.1), "mse")
    watch = Watch(zeros)
    strategy = ridurre.LevelPrune(0.9, scope="global", criterion="random")
    fit(model, ridurre.PruneDuringTraining(strategy, end=3), watch, epochs=4)
    for before, after in zip(watch.seen, watch.seen[1:], strict=False):
        assert all((after[p] | ~z).all() for p, z in before.items())
    total = sum(v.size for v in kernels(model).values())
    assert sum(counts(model)) == int(0.9 * total + 0.5)


@pytest.mark.parametrize("criterion", ["taylor", "wanda"])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_criteria_with_data_in_the_middle_of_training(criterion, unit):
    model = network()
    model.compile(optimizers.Adam(0.05), "mse")
    strategy = ridurre.LevelPrune(0.6, criterion=criterion, data=data(model))
    callback = ridurre.PruneDuringTraining(strategy, begin=1, end=2, unit=unit)
    fit(model, callback, epochs=3)
    assert counts(model) == [9, 21]


def test_a_threshold_that_is_static_or_worked_out_anew():
    def train(static):
        model = network()
        model.get_layer("b").kernel.assign(np.full((5, 7), 0.3))
        model.compile(optimizers.SGD(0.0, weight_decay=0.0), "mse")
        shrink = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: [k.assign(0.5 * value_of(k)) for k in [layer.kernel]]
        )
        layer = model.get_layer("b")
        callback = ridurre.PruneDuringTraining(
            ridurre.ThresholdPrune(0.2, layers="b"), begin=0, static=static
        )
        fit(model, callback, shrink, epochs=2)
        return counts(model)[1]

    assert (train(True), train(False)) == (0, 35)


def test_a_kernel_that_starts_at_zero_is_warned_of():
    model = still(network())
    model.get_layer("b").kernel.assign(np.zeros((5, 7)))
    with pytest.warns(RidurreWarning, match=r"\['b/kernel'\] are exactly zero. Zeros count as"):
        fit(model, ridurre.PruneDuringTraining(ridurre.LevelPrune(0.5)))


# --- prunpy's callbacks --------------------------------------------------------------------------

#: |w| is 0.1 to 1.5 in some order, the signs mixed; the first of two equal ones goes first.
SIZES = np.array([4, 9, 1, 15, 7, 12, 3, 10, 2, 14, 6, 13, 5, 8, 11]) / 10
SIGNS = np.where(np.arange(15) % 2, -1, 1)


def by_hand():
    model = network()
    model.get_layer("a").kernel.assign((SIZES * SIGNS).reshape(3, 5))
    model.get_layer("b").kernel.assign(np.full((5, 7), 2.0))
    return still(model)


def gone(model):
    return np.sort(SIZES[zeros(model)["a/kernel"].ravel()] * 10).round().astype(int).tolist()


def first(count):
    return list(range(1, count + 1))


@pytest.mark.parametrize("function", ["one_shot", "one_shot_static"])
def test_magnitude_percentage_takes_the_smallest_from_its_epoch_on(function):
    model, watch = by_hand(), Watch(gone)
    fit(model, ridurre.MagnitudePercentage(0.4, function, 2), watch, epochs=4)
    assert watch.seen == [[], [], first(6), first(6)]
    np.testing.assert_allclose(  # the others are what they were
        np.where(SIZES > 0.65, SIZES * SIGNS, 0), kernels(model)["a/kernel"].ravel(), rtol=1e-6
    )
    assert counts(model)[1] == 14  # of equal ones the first: the level is that of every kernel


def test_magnitude_percentage_over_the_whole_model():
    model = by_hand()
    fit(model, ridurre.MagnitudePercentage(0.2, scope="global"))
    assert (gone(model), counts(model)[1]) == (first(10), 0)
    model = by_hand()
    fit(model, ridurre.MagnitudePercentage(0.2, layers="b"))
    assert counts(model) == [0, 7]


def test_magnitude_percentage_rises_linearly():
    model, watch = by_hand(), Watch(gone)
    fit(model, ridurre.MagnitudePercentage(0.8, "gradual", 1, 3), watch, epochs=6)
    assert watch.seen == [[], first(4), first(8), first(12), first(12), first(12)]


@pytest.mark.parametrize("function", ["one_shot", "one_shot_static"])
def test_magnitude_threshold_takes_what_is_not_above(function):
    model, watch = by_hand(), Watch(gone)
    fit(model, ridurre.MagnitudeThreshold(0.6, function, 1), watch, epochs=3)
    assert watch.seen == [[], first(6), first(6)]  # 0.6 too, as single precision has it
    assert counts(model)[1] == 0


def test_magnitude_threshold_rises_linearly():
    model, watch = by_hand(), Watch(gone)
    fit(model, ridurre.MagnitudeThreshold(1.2, "gradual", 0, 3), watch, epochs=4)
    assert watch.seen == [first(4), first(8), first(12), first(12)]


def test_one_shot_looks_at_the_weights_anew_and_static_does_not():
    def train(function):
        model = by_hand()
        kernel = model.get_layer("a").kernel
        shrink = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: kernel.assign(0.5 * value_of(kernel))
        )
        fit(model, ridurre.MagnitudeThreshold(0.3, function), shrink, epochs=2)
        return gone(model)

    assert train("one_shot") == first(6)
    assert train("one_shot_static") == first(3)


def test_callbacks_by_dictionary():
    config = {
        "schedule_type": "magnitude_percentage",
        "function": "gradual",
        "threshold": 0.8,
        "epoch_threshold": 2,
        "converge_over": 3,
    }
    model, watch = by_hand(), Watch(gone)
    fit(model, ridurre.pruning_callback(**config), watch, epochs=6)
    assert watch.seen == [[], [], first(4), first(8), first(12), first(12)]
    config = {"schedule_type": "magnitude_threshold", "function": "one_shot", "threshold": 0.3}
    model = by_hand()
    fit(model, ridurre.pruning_callback(**config))
    assert gone(model) == first(3)
    rewind = ridurre.pruning_callback(
        "rewind_pruning",
        threshold=0.2,
        threshold_step=0.1,
        epoch_threshold=3,
        initial_learning_rate=0.1,
        eps=0.01,
    )
    assert (rewind.threshold, rewind.threshold_step, rewind.eps) == (0.2, 0.1, 0.01)


# --- rewinding -----------------------------------------------------------------------------------


class Score(keras.callbacks.Callback):
    """Says what the accuracy is; has to stand before the callback that reads it."""

    def __init__(self, values, name="accuracy"):
        super().__init__()
        self.values, self.name = values, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


def rates(model):
    return round(float(value_of(model.optimizer.learning_rate)), 6)


def test_rewinding_prunes_more_whenever_the_model_has_recovered():
    model, watch = by_hand(), Watch(gone)
    scores = Score([0.5, 0.9, 0.6, 0.7, 0.8, 0.85, 0.1, 0.95, 0.95, 0.95])
    # The target is 0.9 − 0.1, from the epochs 0 and 1; reached after 1, 4, 5, 7 and 8.
    rewind = ridurre.RewindPruning(0.2, 0.4, 2, 0.0, 0.1)
    fit(model, scores, rewind, watch, epochs=10)
    assert watch.seen == [[], [], *[first(3)] * 3, first(9), *[first(15)] * 4]
    assert (rewind.amount, rewind.epoch) == (1.0, 3)  # epoch 8 had nothing more to prune


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_rewinding_knows_what_is_better(name):
    model, watch = by_hand(), Watch(gone)
    scores = Score([0.5, 0.3, 0.6, 0.35], name)
    mode = "auto" if name == "loss" else "min"
    rewind = ridurre.RewindPruning(0.2, 0.2, 1, 0.0, 0.02, name, mode=mode)
    fit(model, scores, rewind, watch, epochs=4)
    assert watch.seen == [[], first(3), first(6), first(6)]


@pytest.mark.parametrize("optimizer", [optimizers.SGD, optimizers.Adam])
def test_rewinding_replays_the_schedule_of_the_optimizer(optimizer, tmp_path):
    schedule = optimizers.schedules.PiecewiseConstantDecay([1, 3, 5], [0.4, 0.3, 0.2, 0.1])
    model = network()
    model.compile(optimizer(schedule), "mse")
    watch = Watch(rates, steps=True)  # of the next step: the count is up by one already
    scores = Score([0.9, 0.9, 0.5, 0.9, 0.5])
    rewind = ridurre.RewindPruning(0.2, 0.2, 2, 0.4, 0.0)
    path = tmp_path / "{epoch}.keras"
    fit(model, scores, rewind, watch, keras.callbacks.ModelCheckpoint(path), epochs=5)
    start, later = [0.4, 0.3, 0.3], [0.2, 0.2, 0.1]
    assert watch.seen == [*start, *later, *start, *later, *start]
    assert rates(model) == 0.1  # the user's own schedule is back, at step 15
    assert int(value_of(model.optimizer.iterations)) == 15
    assert "ridurre" not in str(model.get_compile_config())
    loaded = keras.saving.load_model(tmp_path / "4.keras")
    assert rates(loaded) == 0.1
    assert isinstance(loaded.optimizer.get_config()["learning_rate"], dict)


def test_the_replayed_rate_is_what_moves_the_weights():
    """The gradient of the sum of a bias is one: it moves by the rates."""
    schedule = optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.25])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(1, name="a")(inputs))
    model.compile(optimizers.SGD(schedule), lambda y, p: keras.ops.sum(p, axis=-1))
    bias = Watch(lambda m: float(value_of(m.get_layer("a").bias)[0]), steps=True)
    x = np.zeros((6, 3), "float32")
    model.fit(
        x, x[:, :1], batch_size=2, epochs=3, verbose=0,
        callbacks=[Score([1.0, 1.0, 0.0]), ridurre.RewindPruning(0.4, 0.4, 1, 1.0, 0.0), bias],
    )  # fmt: skip
    moved = -np.diff([0.0, *bias.seen])
    np.testing.assert_allclose(moved, [1, 1, 1, 1, 1, 1, 1, 1, 1], atol=1e-5)


def test_rewinding_sets_a_plain_rate_back():
    model = network()
    model.compile(optimizers.Adam(0.1), "mse")

    def lower(*_):
        model.optimizer.learning_rate = 0.5 * rates(model)

    watch = Watch(rates)
    scores = Score([0.9, 0.9, 0.1, 0.9, 0.1])
    rewind = ridurre.RewindPruning(0.2, 0.2, 2, 0.08, 0.0)
    decay = keras.callbacks.LambdaCallback(on_epoch_end=lower)
    fit(model, scores, rewind, watch, decay, epochs=5)
    assert watch.seen == [0.1, 0.05, 0.08, 0.04, 0.08]


def test_rewinding_with_a_scheduler_of_the_users():
    model = network()
    model.compile(optimizers.SGD(0.1), "mse")
    rewind = ridurre.RewindPruning(0.2, 0.2, 2, 0.1, 0.0)
    scheduler = keras.callbacks.LearningRateScheduler(lambda _: 0.1 * 0.5**rewind.epoch)
    watch = Watch(rates)
    fit(model, Score([0.9, 0.9, 0.1, 0.9, 0.1]), rewind, scheduler, watch, epochs=5)
    assert watch.seen == [0.1, 0.05, 0.1, 0.05, 0.1]


def test_rewinding_goes_on_in_another_fit():
    schedule = optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.4, 0.3, 0.2])
    model = network()
    model.compile(optimizers.SGD(schedule), "mse")
    rewind = ridurre.RewindPruning(0.2, 0.2, 1, 0.4, 0.0)
    scores, watch = Score([0.9, 0.1, 0.9, 0.1]), Watch(counts)
    fit(model, scores, rewind, watch, epochs=2)
    assert rates(model) == 0.2
    steps = Watch(rates, steps=True)
    seen = Watch(lambda m: rewind.epoch)
    fit(model, scores, rewind, watch, steps, seen, epochs=4, initial_epoch=2)
    assert watch.seen == [[0, 0], [3, 7], [3, 7], [6, 14]]
    assert steps.seen == [0.2, 0.2, 0.2, 0.4, 0.3, 0.3]
    assert seen.seen == [1, 0]
    fit(model, scores, rewind, epochs=1)  # from the start, all is forgotten
    assert (rewind.amount, rewind.epoch) == (0.0, 0)


def test_a_replayed_schedule_is_a_schedule():
    own = optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    replayed = ReplayedSchedule(own, 20)
    again = optimizers.schedules.deserialize(optimizers.schedules.serialize(replayed))
    for one in (replayed, again):
        assert float(value_of(one(30))) == pytest.approx(0.05)


def test_rewinding_without_what_it_needs():
    rewind = ridurre.RewindPruning(0.2, 0.2, 2, 0.1, 0.0)
    model = network()
    model.compile(optimizers.SGD(0.1), "mse", metrics=["mae"])
    with pytest.raises(RequestError, match=r"'accuracy' among what is logged .*'loss', 'mae'"):
        fit(model, rewind)
    with pytest.raises(RequestError, match="whose best 'accuracy' is the target. Received: tr"):
        fit(model, Score([0.5] * 4), rewind, epochs=4, initial_epoch=3)
    model.compile(optimizers.SGD(lambda: 0.1), "mse")
    with pytest.raises(RequestError, match="a learning rate that is a number or a keras"):
        fit(model, Score([0.5] * 4), rewind, epochs=4)
    rewind.remove()
    assert "apply" not in vars(model.optimizer)


# --- lottery tickets -----------------------------------------------------------------------------


def trainer(log=None, compile_it=False):
    def train(model, initial_epoch, epochs):
        if compile_it and initial_epoch == 0:
            model.compile(optimizers.Adam(0.05), "mse")
        if log is not None:
            log.append((initial_epoch, epochs, counts(model), kernels(model)))
        fit(model, initial_epoch=initial_epoch, epochs=epochs, shuffle=False)

    return train


@pytest.mark.parametrize("rewind_to", [0, 1])
def test_a_lottery_ticket_starts_from_the_early_weights(rewind_to):
    model, log = network(), []
    model.compile(optimizers.Adam(0.05), "mse")
    original, values = snapshot(model), kernels(model)
    ticket, masks = ridurre.lottery_ticket(
        model, trainer(log), ridurre.LevelPrune(0.75), epochs=3, rewind_to=rewind_to, rounds=2
    )
    assert snapshot(model) == original
    assert all(v.constraint is None for v in ticket.variables)
    first_run, *retrained = log if rewind_to == 0 else log[1:]
    assert [entry[:2] for entry in log[-3:]] == [(rewind_to, 3)] * 3
    early = first_run[3]
    assert same(early, values) == (rewind_to == 0)
    assert [entry[2] for entry in retrained] == [[8, 18], [11, 26]]  # geometric: 1 − √0.25 = 0.5
    for *_, start in retrained:
        for path, value in start.items():
            np.testing.assert_array_equal(value, np.where(value == 0, 0, early[path]))
    earlier, later = (entry[3] for entry in retrained)
    assert all((later[p][earlier[p] == 0] == 0).all() for p in earlier)
    assert counts(ticket) == [11, 26]
    assert same({p: ~k for p, k in masks.items()}, zeros(ticket))
    assert not any(np.array_equal(later[p], v) for p, v in kernels(ticket).items())


def test_a_lottery_ticket_drops_what_training_made_small():
    """The trained magnitudes decide, and the early ones come back."""
    model = by_hand()
    swapped = (1.6 - SIZES).reshape(3, 5)

    def train(model, initial_epoch, epochs):
        kernel = model.get_layer("a").kernel
        kernel.assign(np.where(value_of(kernel) == 0, 0, swapped))

    ticket, masks = ridurre.lottery_ticket(
        model, train, ridurre.LevelPrune(0.4, layers="a"), epochs=1
    )
    np.testing.assert_array_equal(masks["a/kernel"].ravel(), SIZES < 0.95)
    assert counts(ticket) == [6, 0]


def test_survivors_that_start_at_zero_can_move():
    model = network()
    model.get_layer("b").kernel.assign(np.zeros((5, 7)))
    ticket, masks = ridurre.lottery_ticket(
        model, trainer(compile_it=True), ridurre.LevelPrune(0.6), epochs=2
    )
    assert counts(ticket) == [9, 21]
    assert masks.kept == 20


# --- bad input -----------------------------------------------------------------------------------

LEVEL = ridurre.LevelPrune(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridurre.PruneDuringTraining(0.5), "LevelPrune or ridurre.ThresholdPrune. Rec"),
        (lambda: ridurre.PruneDuringTraining(ridurre.ChannelPrune(0.5)), "Channels are removed"),
        (
            lambda: ridurre.PruneDuringTraining(ridurre.LevelPrune(0.5, steps=2)),
            "without steps and repair of its own",
        ),
        (lambda: ridurre.PruneDuringTraining(LEVEL, every=0), "every from 1, and an end"),
        (lambda: ridurre.PruneDuringTraining(LEVEL, begin=3, end=2), "begin=3, end=2, every=1"),
        (lambda: ridurre.PruneDuringTraining(LEVEL, begin=-1), "begin to be a whole number"),
        (lambda: ridurre.PruneDuringTraining(LEVEL, end=1.5), "end to be a whole number"),
        (lambda: ridurre.PruneDuringTraining(LEVEL, unit="steps"), "Did you mean 'step'"),
        (lambda: ridurre.PruneDuringTraining(LEVEL, schedule="cube"), "Did you mean 'cubic'"),
        (lambda: ridurre.MagnitudePercentage(1.5), r"threshold in \[0, 1\]. Received: 1.5"),
        (lambda: ridurre.MagnitudePercentage(0.5, "one-shot"), "Did you mean 'one_shot'"),
        (lambda: ridurre.MagnitudePercentage(0.5, "gradual"), "converge_over, the number of"),
        (lambda: ridurre.MagnitudePercentage(0.5, "gradual", 0, 0), "Received: 0"),
        (lambda: ridurre.MagnitudePercentage(0.5, scope="here"), "scope to be one of"),
        (lambda: ridurre.MagnitudeThreshold(-0.1), "a threshold from 0 up"),
        (lambda: ridurre.MagnitudeThreshold("big"), "threshold, a finite number"),
        (lambda: ridurre.MagnitudeThreshold(0.1, epoch_threshold=-2), "epoch_threshold to be"),
        (lambda: ridurre.RewindPruning(0.2, 0.1, 0, 0.1, 0.0), "epoch_threshold from 1"),
        (lambda: ridurre.RewindPruning(2, 0.1, 1, 0.1, 0.0), r"threshold in \[0, 1\]"),
        (lambda: ridurre.RewindPruning(0.2, -1, 1, 0.1, 0.0), r"threshold_step in \[0, 1\]"),
        (lambda: ridurre.RewindPruning(0.2, 0.1, 1, None, 0.0), "initial_learning_rate, a fin"),
        (lambda: ridurre.RewindPruning(0.2, 0.1, 1, 0.1, 0.0, mode="up"), "mode to be one of"),
        (lambda: ridurre.pruning_callback("magnitude"), "schedule_type to be one of"),
        (
            lambda: ridurre.pruning_callback("magnitude_percentage", treshold=0.5),
            r"does not fit 'magnitude_percentage'.*Expected: threshold: .*\['treshold'\]",
        ),
        (
            lambda: ridurre.lottery_ticket(network(), None, LEVEL, epochs=1),
            "train to be a function",
        ),
        (
            lambda: ridurre.lottery_ticket(network(), trainer(), LEVEL, epochs=1, rewind_to=1),
            "rewind_to below epochs",
        ),
        (
            lambda: ridurre.lottery_ticket(network(), trainer(), 0.5, epochs=1),
            "a strategy for single weights",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(RequestError, match=message):
        call()


@pytest.mark.parametrize(
    "callback",
    [
        ridurre.KeepZeros(),
        ridurre.PruneDuringTraining(LEVEL),
        ridurre.RewindPruning(0.2, 0.1, 1, 0.1, 0.0),
    ],
)
def test_callbacks_without_fit_are_refused(callback):
    for use in (callback.on_train_begin, lambda: callback.masks):
        with pytest.raises(RequestError, match="is a callback of model.fit and has no model"):
            use()


def test_layers_that_are_not_there_are_refused_before_training():
    model = by_hand()
    before = snapshot(model)
    for callback, error in [
        (ridurre.KeepZeros(layers="c"), UnknownLayerError),
        (ridurre.MagnitudePercentage(0.5, layers="c"), UnknownLayerError),
        (ridurre.KeepZeros(lambda variable: False), NothingToPruneError),
    ]:
        with pytest.raises(error):
            fit(model, callback)
    assert snapshot(model) == before
