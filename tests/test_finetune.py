"""Distillation from the parent, and learning rates that end at zero."""

import keras
import numpy as np
import pytest
from builders import L, chain, first, pictures, scripted

import ridurre
from ridurre.errors import RequestError
from ridurre.testing import randomise, snapshot

pytestmark = pytest.mark.core
CE = keras.losses.SparseCategoricalCrossentropy
to_numpy = keras.ops.convert_to_numpy


def classifier(softmax=False, regularizer=None, seed=0):
    """Nine features, five classes."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((9,))
    x = L.BatchNormalization(name="norm")(L.Dense(7, activation="tanh", name="hidden")(inputs))
    x = L.Dense(5, kernel_regularizer=regularizer, name="head")(x)
    model = keras.Model(inputs, L.Softmax(name="softmax")(x) if softmax else x)
    randomise(model, seed)
    return model


def data(count=24):
    rng = np.random.default_rng(4)
    return rng.normal(size=(count, 9)).astype("float32"), rng.integers(0, 5, count)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def infer(model, x):
    return to_numpy(model(x, training=False)).astype("float64")


def parts(student, teacher, x, y, temperature, *, softmax, weight=None):
    """Cross-entropy and T²·KL, worked out with NumPy."""
    z, t = infer(student, x), infer(teacher, x)
    if softmax:
        z, t = np.log(z), np.log(t)
    ce = -log_softmax(z)[np.arange(len(y)), y]
    p, q = log_softmax(t / temperature), log_softmax(z / temperature)
    kl = temperature**2 * (np.exp(p) * (p - q)).sum(-1)
    weight = np.ones(len(y)) if weight is None else weight
    return (ce * weight).mean(), (kl * weight).mean()


def first_loss(student, distillation):
    """The loss of the very first batch, which is all of the data; nothing is learned."""
    return distillation(student, 0, 1).history["loss"][0]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 4.0), (0.8, 2.5), (0.0, 1.0), (1.0, 3.0)])
def test_the_loss_is_hintons(softmax, alpha, temperature):
    # Batch norm in training mode would give other outputs: it is frozen.
    student, teacher = classifier(softmax), classifier(softmax, seed=1)
    student.get_layer("norm").trainable = False
    student.compile(keras.optimizers.SGD(0.0), CE(from_logits=not softmax))
    x, y = data()
    distillation = ridurre.Distillation(
        teacher, x, y, alpha=alpha, temperature=temperature, batch_size=24, verbose=0
    )
    ce, kl = parts(student, teacher, x, y, temperature, softmax=softmax)
    expected = alpha * ce + (1 - alpha) * kl
    assert first_loss(student, distillation) == pytest.approx(expected, rel=1e-4)


def test_regularisers_count_in_full_and_sample_weights_everywhere():
    student, teacher = classifier(regularizer=keras.regularizers.L2(0.1)), classifier(seed=1)
    student.get_layer("norm").trainable = False
    student.compile(keras.optimizers.SGD(0.0), CE(from_logits=True))
    x, y = data()
    weight = np.random.default_rng(0).uniform(0, 2, len(y)).astype("float32")
    weight *= len(y) / weight.sum()
    distillation = ridurre.Distillation(
        teacher, x, y, alpha=0.3, sample_weight=weight, batch_size=24, verbose=0
    )
    ce, kl = parts(student, teacher, x, y, 4.0, softmax=False, weight=weight)
    penalty = 0.1 * np.square(to_numpy(student.get_layer("head").kernel)).sum()
    expected = 0.3 * ce + 0.7 * kl + penalty
    assert first_loss(student, distillation) == pytest.approx(expected, rel=1e-4)


def test_the_student_comes_to_agree_with_its_teacher_whatever_the_labels():
    student, teacher = classifier(), classifier(seed=1)
    student.compile(keras.optimizers.Adam(0.02), CE(from_logits=True), metrics=["accuracy"])
    x, _ = data(64)
    before = snapshot(teacher)
    agreed = [infer(student, x).argmax(1) == infer(teacher, x).argmax(1)]
    wrong = np.zeros(64, int)
    history = ridurre.Distillation(teacher, x, wrong, alpha=0.0, verbose=0)(student, 3, 40)
    agreed.append(infer(student, x).argmax(1) == infer(teacher, x).argmax(1))
    assert agreed[0].mean() < 0.6
    assert agreed[1].mean() > 0.8
    assert history.epoch == list(range(3, 40))
    assert {"loss", "accuracy"} <= history.history.keys()
    assert snapshot(teacher) == before
    assert teacher.trainable
    assert not teacher.compiled


def test_afterwards_the_model_is_itself_again():
    student, teacher = classifier(), classifier(seed=1)
    student.compile(keras.optimizers.SGD(0.0, momentum=0.9), CE(from_logits=True))
    student.get_layer("norm").trainable = False
    x, y = data()
    optimizer = student.optimizer
    distill = ridurre.Distillation(teacher, x, y, batch_size=24, verbose=0)
    distill(student, 0, 1)
    distill(student, 1, 3)
    assert student.optimizer is optimizer
    assert int(to_numpy(optimizer.iterations)) == 3
    assert "compute_loss" not in vars(student)
    ce, _ = parts(student, teacher, x, y, 4.0, softmax=False)
    own = student.fit(x, y, batch_size=24, verbose=0).history["loss"][0]
    assert own == pytest.approx(ce, rel=1e-4)


def test_it_is_itself_again_after_an_error_too():
    class Oops(Exception):
        pass

    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise Oops

    student, teacher = classifier(), classifier(seed=1)
    student.compile(keras.optimizers.SGD(0.0), CE(from_logits=True))
    student.get_layer("norm").trainable = False
    x, y = data()
    with pytest.raises(Oops):
        ridurre.Distillation(teacher, x, y, callbacks=[Break()], verbose=0)(student, 0, 2)
    assert "compute_loss" not in vars(student)
    ce, _ = parts(student, teacher, x, y, 4.0, softmax=False)
    own = student.fit(x, y, batch_size=24, verbose=0).history["loss"][0]
    assert own == pytest.approx(ce, rel=1e-4)


def test_validation_uses_the_models_own_loss():
    student, teacher = classifier(), classifier(seed=1)
    student.compile(keras.optimizers.SGD(0.0), CE(from_logits=True))
    student.get_layer("norm").trainable = False
    x, y = data()
    distill = ridurre.Distillation(
        teacher, x, y, alpha=0.2, validation_data=(x, y), validation_batch_size=24, verbose=0
    )
    ce, _ = parts(student, teacher, x, y, 4.0, softmax=False)
    history = distill(student, 0, 1).history
    assert history["val_loss"][0] == pytest.approx(ce, rel=1e-4)
    assert history["loss"][0] != pytest.approx(ce, rel=1e-2)


def test_several_outputs():
    def build(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((9,))
        heads = [L.Dense(n, name=f"head{n}")(inputs) for n in (3, 5)]
        return keras.Model(inputs, heads)

    student, teacher = build(0), build(1)
    student.compile(keras.optimizers.SGD(0.0), [CE(from_logits=True), CE(from_logits=True)])
    x, y = data()
    distill = ridurre.Distillation(
        teacher, x, [y % 3, y], alpha=0.0, temperature=2.0, batch_size=24, verbose=0
    )
    expected = 0.0
    for z, t in zip(student(x), teacher(x), strict=True):
        p, q = (log_softmax(to_numpy(keras.ops.stop_gradient(a)) / 2) for a in (t, z))
        expected += 4 * (np.exp(p) * (p - q)).sum(-1).mean()
    assert first_loss(student, distill) == pytest.approx(expected, rel=1e-4)


def test_it_serves_the_loop():
    model = chain()
    x, y = pictures(model, 12), np.arange(12) % 2
    before = snapshot(model)
    pruning = scripted(
        first,
        compile_fn=lambda m: m.compile("adam", CE(from_logits=True)),
        finetune_fn=ridurre.Distillation(model, x, y, batch_size=4, verbose=0),
        epochs=2,
        rounds=2,
    )
    smaller, epochs = pruning.run_pruning(model)
    assert epochs == 4
    assert int(to_numpy(smaller.optimizer.iterations)) == 6
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mse", "Received the loss 'mse'"),
        (keras.losses.BinaryCrossentropy(), "cross-entropy, which says"),
        (None, "from_logits=True or False"),
    ],
)
def test_a_loss_that_does_not_tell_is_asked_about(loss, message):
    student, teacher = classifier(), classifier(seed=1)
    student.compile("sgd", loss)
    with pytest.raises(RequestError, match=message):
        ridurre.Distillation(teacher, *data(), verbose=0)(student, 0, 1)
    if loss == "mse":
        x, _ = data()
        targets = np.zeros((24, 5), "float32")
        ridurre.Distillation(teacher, x, targets, from_logits=True, verbose=0)(student, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha in \[0, 1\]. Received: 1.5"),
        ({"temperature": 0}, "temperature to be positive. Received: 0"),
        ({"temperature": "hot"}, "Expected temperature, a finite number"),
        ({"epochs": 3}, r"which epochs to train; received \['epochs'\]"),
        ({"teacher": "parent"}, "Expected teacher to be a Keras model. Received: 'parent'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        ridurre.Distillation(**{"teacher": classifier(), "x": data()[0]} | options)


# --- learning rate --------------------------------------------------------------------------------


def rates(schedule, count):
    return np.array([float(schedule(step)) for step in range(count)])


def test_it_rises_and_falls_to_zero():
    values = rates(ridurre.LinearToZero(0.3, 50), 60)
    assert values.argmax() in (4, 5)
    assert values.max() == pytest.approx(0.3, rel=0.03)
    assert values[0] == pytest.approx(0.3 / 6, rel=1e-5)
    assert (np.diff(values[:5]) > 0).all()
    assert (np.diff(values[5:50]) < 0).all()
    assert values[49] == pytest.approx(0.3 / 45, rel=1e-4)
    assert (values[50:] == 0).all()


def test_without_warm_up_it_begins_at_the_peak():
    np.testing.assert_allclose(
        rates(ridurre.LinearToZero(1.0, 4, warmup=0.0), 5), [1, 0.75, 0.5, 0.25, 0]
    )


def test_the_rate_is_saved_with_its_model(tmp_path):
    model = classifier()
    model.compile(keras.optimizers.SGD(ridurre.LinearToZero(0.3, 40, 0.2)), "mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    schedule = loaded.optimizer.get_config()["learning_rate"]["config"]
    assert schedule == {"peak": 0.3, "steps": 40, "warmup": 0.2}


def test_an_optimizer_follows_it():
    model = classifier()
    model.compile(keras.optimizers.SGD(ridurre.LinearToZero(0.1, 6)), "mse")
    x, _ = data()
    model.fit(x, np.zeros((24, 5)), batch_size=4, verbose=0)
    assert float(to_numpy(model.optimizer.learning_rate)) == 0
    before = to_numpy(model.get_layer("head").kernel).copy()
    model.fit(x, np.zeros((24, 5)), batch_size=4, verbose=0)
    np.testing.assert_array_equal(to_numpy(model.get_layer("head").kernel), before)


def two_layers():
    """Weights worked with by hand: `a` has 3 filters of norm 2, 1 and 0 (all biases zero)."""
    inputs = keras.Input((1, 1, 1))
    x = L.Conv2D(3, 1, use_bias=False, name="a")(inputs)
    x = L.Conv2D(1, 1, use_bias=False, name="b")(x)
    model = keras.Model(inputs, L.Flatten()(x))
    model.get_layer("a").kernel.assign(np.array([2.0, 1.0, 0.0]).reshape(1, 1, 1, 3))
    model.get_layer("b").kernel.assign(np.array([2.0, 0.0, 0.0]).reshape(1, 1, 3, 1))
    return model  # the sum of squares is 9, the number of parameters 6


@pytest.mark.parametrize("as_plan", [True, False])
@pytest.mark.parametrize(
    ("gone", "budget", "share"),
    [
        ([1], 0.0, np.sqrt(1 / 9 / (2 / 6))),
        ([0], 0.0, 1.0),  # √(8/9 · 3) is more than the whole
        ([2], 0.25, 0.25),
        ([2], 0.0, 0.0),
        ([1, 2], 0.01, np.sqrt(1 / 9 / (4 / 6))),
        ([1], 0.9, 0.9),
    ],
)
def test_the_peak_is_as_high_as_the_damage(as_plan, gone, budget, share):
    model = two_layers()
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", gone)
    cut = plan if as_plan else plan.exec()
    schedule = ridurre.retraining_rate(model, cut, 0.2, 77, budget=budget, warmup=0.3)
    assert schedule.peak == pytest.approx(0.2 * share)
    assert (schedule.steps, schedule.warmup) == (77, 0.3)


def test_nothing_removed_leaves_the_budgets_share():
    model = two_layers()
    assert ridurre.retraining_rate(model, model, 0.2, 5, budget=0.5).peak == pytest.approx(0.1)


def test_moving_statistics_are_no_parameters():
    model = chain()
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", [1, 3])
    one = ridurre.retraining_rate(model, plan, 0.2, 9).peak
    model.get_layer("bn").moving_variance.assign(1e6 * np.ones(5))
    assert ridurre.retraining_rate(model, plan, 0.2, 9).peak == one
    assert ridurre.retraining_rate(model, plan.exec(), 0.2, 9).peak == pytest.approx(one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridurre.LinearToZero(0.1, 0), "at least one step"),
        (lambda: ridurre.LinearToZero(0.1, 2.5), "steps to be a whole number"),
        (lambda: ridurre.LinearToZero(0.1, 5, 1.0), r"warmup in \[0, 1\)"),
        (lambda: ridurre.LinearToZero(float("inf"), 5), "Expected peak, a finite number"),
        (lambda: ridurre.retraining_rate(two_layers(), chain(), 0.1, 5), "one that is larger"),
    ],
)
def test_wrong_rates_are_refused(call, message):
    with pytest.raises(RequestError, match=message):
        call()
