"""Recurrent layers: states, masks, cells, and what the rest of the package makes of units."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import ridurre
from ridurre.backend import own_variables, to_numpy
from ridurre.costs import cost_of
from ridurre.data import random_inputs
from ridurre.errors import FrozenChannelError
from ridurre.graph import ChannelGraph
from ridurre.testing import randomise, snapshot

Tensor = Any


def model_of(inputs: Any, outputs: Any) -> keras.Model:
    """A model with random weights that reads a tensor with a dense layer."""
    model = keras.Model(inputs, L.Dense(2, name="read")(outputs))
    randomise(model)
    return model


def pruned(model: keras.Model, name: str, units: list[int]) -> keras.Model:
    """The model without units of a layer, verified."""
    plan = ridurre.DependencyGraph(model).get_pruning_plan(name, units)
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    return smaller


def through_file(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path)


def sequences(steps: int | None = 4, channels: int = 3, name: str = "before") -> tuple[Any, Any]:
    inputs = keras.Input((steps, 2))
    return inputs, L.Dense(channels, name=name)(inputs)


# What a unit owns


@pytest.mark.parametrize(
    ("cls", "gates", "states"), [(L.SimpleRNN, 1, 1), (L.GRU, 3, 1), (L.LSTM, 4, 2)]
)
def test_a_unit_owns_a_column_per_gate_and_a_row(cls: Any, gates: int, states: int) -> None:
    inputs, x = sequences()
    layer = cls(5, name="cells", return_state=True)
    model = model_of(inputs, L.Concatenate()(layer(x)))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("cells", [1, 4])
    columns = [5 * g + u for g in range(gates) for u in (1, 4)]
    kernel, recurrent, bias = (plan.removed[v.path] for v in layer.weights)
    assert {a: i.tolist() for a, i in kernel.items()} == {1: columns}
    assert {a: i.tolist() for a, i in recurrent.items()} == {0: [1, 4], 1: columns}
    assert bias[len(layer.cell.bias.shape) - 1].tolist() == columns
    assert len(plan.removed["read/kernel"][0]) == 2 * (1 + states)
    assert "cells" in str(plan)
    assert "2 of 5 output channels [1, 4]; 2 of 5 recurrent channels [1, 4]" in str(plan)


def test_a_plan_survives_json_and_a_copy_of_the_model() -> None:
    inputs, x = sequences()
    model = model_of(inputs, L.Bidirectional(L.GRU(5), name="both")(x))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("both", [0, 7])
    loaded = ridurre.PruningPlan.from_dict(plan.to_dict())
    smaller = ridurre.apply(through_file(model), loaded)
    assert smaller.get_layer("both").forward_layer.units == 3
    assert ridurre.verify(model, smaller, plan) <= 1e-4


# States


def test_states_that_come_from_an_encoder_go_with_the_decoder() -> None:
    source, target = keras.Input((4, 2)), keras.Input((3, 2))
    _, h, c = L.LSTM(5, return_state=True, name="encoder")(source)
    decoder = L.LSTM(5, return_sequences=True, name="decoder")
    model = model_of([source, target], decoder(target, initial_state=[h, c]))
    for name in ("encoder", "decoder"):
        smaller = pruned(through_file(model), name, [0, 3])
        assert [smaller.get_layer(n).units for n in ("encoder", "decoder")] == [3, 3]


@pytest.mark.parametrize("positional", [False, True])
def test_states_of_all_cells_of_a_stack(positional: bool) -> None:
    inputs, x = sequences(channels=2)
    flat = [L.Dense(n, name=f"state_{i}")(inputs[:, 0]) for i, n in enumerate((3, 3, 5))]
    states = [[flat[0], flat[1]], flat[2]]
    layer = L.RNN([L.LSTMCell(3), L.GRUCell(5)], name="cells")
    y = layer(x, states) if positional else layer(x, initial_state=states)
    model = model_of(inputs, y)
    smaller = pruned(model, "state_1", [1])
    assert [c.units for c in smaller.get_layer("cells").cell.cells] == [2, 5]
    smaller = pruned(model, "cells", [0, 2])
    assert [c.units for c in smaller.get_layer("cells").cell.cells] == [3, 3]
    assert smaller.get_layer("state_2").units == 3


def test_bidirectional_states_are_shared_out() -> None:
    inputs, x = sequences(channels=2)
    states = [L.Dense(3, name=f"state_{i}")(inputs[:, 0]) for i in range(4)]
    layer = L.Bidirectional(L.LSTM(3, return_state=True), name="both")
    model = model_of(inputs, L.Concatenate()(layer(x, initial_state=states)))
    smaller = pruned(model, "state_3", [1])
    assert [smaller.get_layer(f"state_{i}").units for i in range(4)] == [2, 2, 2, 2]
    assert smaller.get_layer("read").kernel.shape[0] == 12


def test_a_state_that_is_an_input_of_the_model_keeps_the_units() -> None:
    inputs, x = sequences()
    state = keras.Input((5,))
    model = model_of([inputs, state], L.GRU(5, name="cells")(x, initial_state=state))
    graph = ridurre.DependencyGraph(model)
    with pytest.raises(FrozenChannelError, match="values that cannot be removed at 'cells'"):
        graph.get_pruning_plan("cells", [0])
    assert graph.removable("before").all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTM(5, stateful=True, name="cells"),
        lambda: L.RNN([L.GRUCell(3), L.LSTMCell(5)], stateful=True, name="cells"),
        lambda: L.Bidirectional(L.GRU(5, stateful=True), merge_mode="sum", name="cells"),
    ],
)
def test_a_stateful_layer_goes_on_where_it_was(make: Callable[[], keras.Layer]) -> None:
    inputs = keras.Input(batch_shape=(3, 4, 2))
    layer = make()
    model = model_of(inputs, layer(inputs))
    model(np.random.default_rng(0).normal(size=(3, 4, 2)))
    before = [to_numpy(v) for v in own_variables(layer)]
    assert all(np.abs(v).sum() > 0 for v in before if v.shape[0] == 3 and v.ndim == 2)
    smaller = pruned(model, "cells", [1, 2])
    data = (np.ones((3, 4, 2), "float32"), np.ones((3, 2), "float32"))
    graph = ridurre.DependencyGraph(model)
    for criterion in (ridurre.criteria.get("wifv"), ridurre.criteria.get("gate_taylor")):
        criterion.score(graph, data, loss="mse")
    after = [to_numpy(v) for v in own_variables(layer)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    # The smaller one is in the middle of the sequence too, and remembers from now on.
    first, second = (to_numpy(smaller(data[0])) for _ in range(2))
    assert not np.allclose(first, second)


# Masks


def test_masks_of_an_embedding_pass() -> None:
    inputs = keras.Input((None,), dtype="int32")
    x = L.Embedding(4, 3, mask_zero=True, name="table")(inputs)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(x)
    x = L.TimeDistributed(L.Dense(5), name="each")(x)
    model = model_of(inputs, L.GRU(3, name="last")(x))
    request = {"table": [1], "both": [2], "each": [0, 4], "last": [0]}
    plan = ridurre.DependencyGraph(model).get_pruning_plan(request)
    smaller = plan.exec()
    words = np.array([[1, 3, 0, 0, 0], [2, 0, 3, 1, 0]])
    assert ridurre.verify(model, smaller, plan, inputs=words) <= 1e-4
    short, long = words[:1, :2], words[:1]
    np.testing.assert_allclose(to_numpy(smaller(short)), to_numpy(smaller(long)), atol=1e-6)


def test_masking_in_front() -> None:
    inputs = keras.Input((4, 2))
    model = model_of(inputs, L.SimpleRNN(5, name="cells")(L.Masking(1.0)(inputs)))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("cells", [0, 3])
    x = random_inputs(model)
    x[0, 2:] = 1.0
    assert ridurre.verify(model, plan.exec(), plan, inputs=x) <= 1e-4


def test_a_mask_made_of_channels_keeps_them() -> None:
    inputs, x = sequences()
    mask = ops.greater(x[:, :, 0], 0)
    model = model_of(inputs, L.GRU(3, name="cells")(x, mask=mask))
    graph = ridurre.DependencyGraph(model)
    assert graph.removable("before").tolist() == [False, True, True]
    pruned(model, "cells", [1])


# Cells and wrappers


def test_units_between_cells_are_a_group_of_their_own() -> None:
    inputs, x = sequences()
    cells = [L.GRUCell(5), L.GRUCell(3), L.LSTMCell(7), L.SimpleRNNCell(2)]
    model = model_of(inputs, L.RNN(cells, name="cells")(x))
    graph = ridurre.DependencyGraph(model)
    assert [g.size for g in graph.groups] == [3, 5, 3, 7, 2]
    assert len(graph.channels("cells")) == 2
    plan = graph.get_pruning_plan({g: [0] for g in graph.groups[1:]})
    smaller = plan.exec()
    assert [c.units for c in smaller.get_layer("cells").cell.cells] == [4, 2, 6, 1]
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    shrunk = ridurre.prune(ridurre.ChannelPrune(0.5, steps=2), model)
    assert [c.units for c in shrunk.get_layer("cells").cell.cells] == [3, 2, 4, 1]


def test_a_shared_layer_loses_the_same_in_all_calls() -> None:
    first, second = keras.Input((4, 2)), keras.Input((3, 2))
    before = [L.Dense(3, name=f"before_{i}")(x) for i, x in enumerate((first, second))]
    shared = L.Bidirectional(L.GRU(3), name="shared")
    model = model_of([first, second], L.Concatenate()([shared(x) for x in before]))
    smaller = pruned(model, "before_1", [0])
    assert smaller.get_layer("before_0").units == 2
    pruned(model, "shared", [5])


def test_a_layer_inside_and_outside_of_a_wrapper_stays_one() -> None:
    inputs = keras.Input((3, 2))
    dense = L.Dense(5, name="dense")
    x = L.Add()([L.TimeDistributed(dense)(inputs), dense(inputs)])
    model = model_of(inputs, x)
    smaller = pruned(model, "dense", [0, 2])
    assert len(smaller.trainable_variables) == len(model.trainable_variables) == 4
    wrapper = next(x for x in smaller.layers if isinstance(x, L.TimeDistributed))
    assert wrapper.layer is smaller.get_layer("dense")


def test_layers_of_different_width_in_both_directions_stay() -> None:
    inputs, x = sequences()
    backward = L.GRU(5, go_backwards=True)
    both = L.Bidirectional(L.GRU(3), backward_layer=backward, merge_mode=None, name="both")
    y, z = both(x)
    model = keras.Model(inputs, [y, z])
    graph = ridurre.DependencyGraph(model)
    assert not graph.removable("both").any()
    assert graph.removable("before").all()


@pytest.mark.parametrize("name", ["activation", "recurrent_activation"])
def test_gates_that_mix_the_units_keep_them(name: str) -> None:
    inputs, x = sequences()
    model = model_of(inputs, L.LSTM(3, name="cells", **{name: "softmax"})(x))
    graph = ridurre.DependencyGraph(model)
    assert not graph.removable("cells").any()
    pruned(model, "before", [1])


def test_functions_of_ones_own_and_settings_survive() -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    inputs, x = sequences()
    x = L.GRU(3, use_cudnn=False, name="gru", return_sequences=True, implementation=1)(x)
    x = L.RNN(L.LSTMCell(5, activation=double, trainable=False), name="cells")(x)
    model = model_of(inputs, x)
    smaller = ridurre.DependencyGraph(model).get_pruning_plan("gru", [0]).exec()
    assert smaller.get_layer("gru").use_cudnn is False
    assert smaller.get_layer("cells").cell.activation is double
    assert not smaller.get_layer("cells").cell.trainable
    assert len(smaller.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_other_precisions(policy: str) -> None:
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless asked for at its start")
    inputs = keras.Input((4, 2))
    x = L.Bidirectional(L.LSTM(5, return_sequences=True, dtype=policy), dtype=policy)(inputs)
    x = L.TimeDistributed(L.Dense(3, dtype=policy), name="each", dtype=policy)(x)
    model = model_of(inputs, L.RNN(L.GRUCell(3, dtype=policy), name="cells", dtype=policy)(x))
    plan = ridurre.DependencyGraph(model).get_pruning_plan({"each": [1], "cells": [0]})
    smaller = plan.exec()
    ridurre.verify(model, smaller, plan)
    assert smaller.get_layer("each").layer.dtype_policy.name == policy
    assert smaller.get_layer("cells").cell.dtype_policy.name == policy


@keras.saving.register_keras_serializable(package="tests")
class Leaky(keras.layers.Layer):
    """A cell of a user's: every channel is averaged over time."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state_size = self.size = size

    def build(self, shape: tuple) -> None:
        self.leak = self.add_weight(shape=(self.size,), name="leak")

    def call(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        mean = x + self.leak * states[0]
        return mean, [mean]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


def test_a_rule_for_a_cell_of_ones_own() -> None:
    @ridurre.register_rule(Leaky)
    class LeakyRule(ridurre.Rule):
        def flow(self, call: Any, space: Any) -> Any:
            labels = call.x.labels
            space.own(call.operation.leak, 0, ridurre.graph.along(labels, -1), "channel")
            return [labels, labels]

        def config(self, call: Any, kept: Any) -> dict[str, Any]:
            return {"size": kept.size(call.operation.leak, 0)}

    try:
        inputs, x = sequences()
        start = L.Dense(3, name="start")(inputs[:, 0])
        layer = L.RNN([Leaky(3), L.GRUCell(5)], name="cells")
        model = model_of(inputs, layer(x, initial_state=[start, ops.zeros_like(mix(inputs))]))
        smaller = pruned(model, "before", [1])
        assert smaller.get_layer("start").units == 2
        pruned(model, "cells", [0, 3])
    finally:
        ridurre.unregister_rule(Leaky)


def mix(inputs: Tensor) -> Tensor:
    return L.Dense(5, name="zeros")(inputs[:, 0])


def test_arguments_by_place_and_by_name() -> None:
    inputs, x = sequences()
    model = model_of(inputs, L.LSTM(3, name="cells")(sequences=x, training=False))
    call = ridurre.DependencyGraph(model).trace.by_layer[id(model.get_layer("cells"))][0]
    assert call.argument("sequences").shape == (None, 4, 3)
    assert call.argument("initial_state") is None
    pruned(model, "before", [0])


# What the rest makes of it


def text_model() -> keras.Model:
    """Every kind of layer of sequences, compiled."""
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(7, 6, mask_zero=True, name="table")(inputs)
    x = L.Bidirectional(L.LSTM(4, return_sequences=True), name="both")(x)
    x = L.TimeDistributed(L.Dense(6, activation="relu"), name="each")(x)
    x = L.RNN([L.SimpleRNNCell(5), L.GRUCell(7)], return_sequences=True, name="stack")(x)
    x = L.LSTM(3, name="last")(x)
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="read")(x))
    randomise(model)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def texts(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 7, (count, 5)), rng.integers(0, 3, count)


def widths(model: keras.Model) -> list[int]:
    """Units of all layers of `text_model`."""
    both, stack = model.get_layer("both"), model.get_layer("stack").cell.cells
    assert both.forward_layer.units == both.backward_layer.units
    return [
        model.get_layer("table").output_dim,
        both.forward_layer.units,
        model.get_layer("each").layer.units,
        *(cell.units for cell in stack),
        model.get_layer("last").units,
    ]


WIDTHS = [6, 4, 6, 5, 7, 3]
HALVED = [3, 2, 3, 3, 4, 2]


def test_work_is_counted_per_step() -> None:
    complexity = ridurre.model_complexity(text_model())
    macs = {x.name: x.macs for x in complexity.layers}
    assert macs["both"] == 5 * 2 * (6 + 4) * 16
    assert macs["each"] == 5 * 8 * 6
    assert macs["stack"] == 5 * ((6 + 5) * 5 + (5 + 7) * 21)
    assert macs["last"] == 5 * (7 + 3) * 12
    assert complexity.macs == sum(macs.values())


def test_work_of_convolutions_over_time() -> None:
    inputs = keras.Input((3, 4, 5, 2))
    x = L.ConvLSTM2D(3, 2, return_sequences=True, name="cells")(inputs)
    x = L.TimeDistributed(L.Conv2D(5, 2), name="each")(x)
    complexity = ridurre.model_complexity(keras.Model(inputs, x))
    macs = {x.name: x.macs for x in complexity.layers}
    assert macs["cells"] == 3 * (3 * 4) * 2 * 2 * (2 + 3) * 12
    assert macs["each"] == 3 * (2 * 3) * 2 * 2 * 3 * 5


def test_an_open_length_counts_as_one_step() -> None:
    inputs = keras.Input((None, 2))
    model = model_of(inputs, L.LSTM(5, name="cells")(L.GRU(7, return_sequences=True)(inputs)))
    smaller = ridurre.prune(
        ridurre.ChannelPrune(target=ridurre.MACs(0.5, input_shape=(4, 2))), model
    )
    graph = ChannelGraph(model)
    everything = np.ones(graph.trace.space.size, bool)
    assert cost_of(graph, "macs").total(everything) == (2 + 7) * 21 + (7 + 5) * 20 + 10
    full, left = (ridurre.model_complexity(m, input_shape=(4, 2)).macs for m in (model, smaller))
    assert full == 4 * ((2 + 7) * 21 + (7 + 5) * 20) + 10
    assert 0.35 * full < left <= 0.52 * full


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "random", "lamp", "cosine"])
def test_units_are_pruned_by_default(criterion: str) -> None:
    model = text_model()
    smaller = ridurre.prune(ridurre.ChannelPrune(0.5, criterion=criterion), model)
    assert widths(smaller) == HALVED
    assert widths(model) == WIDTHS


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_targets_are_met(scope: str) -> None:
    model = text_model()
    for target, measure in ((ridurre.MACs(0.5), "macs"), (ridurre.Params(0.6), "parameters")):
        smaller = ridurre.prune(ridurre.ChannelPrune(target=target, scope=scope), model)
        full, left = (getattr(ridurre.model_complexity(m), measure) for m in (model, smaller))
        assert 0.4 * full < left <= 0.6 * full


CRITERIA = ["taylor", "gate_taylor", "wifv", "mean_activation", "apoz", "obs", "synflow"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_with_data(criterion: str) -> None:
    model, data = text_model(), texts()
    before = snapshot(model)
    graph = ridurre.DependencyGraph(model)
    scores = ridurre.criteria.get(criterion).score(graph, data)
    assert [s.shape[0] for s in scores.values()] == WIDTHS
    assert all((np.isfinite(s) & (s > 0)).any() for s in list(scores.values())[-1:])
    assert snapshot(model) == before


def test_units_that_a_criterion_cannot_judge_stay() -> None:
    model, data = text_model(), texts()
    smaller = ridurre.prune(ridurre.ChannelPrune(0.5, criterion="obs", data=data), model)
    assert widths(smaller) == [*WIDTHS[:-1], HALVED[-1]]


@pytest.mark.parametrize("name", ["cells", "encoder"])
def test_a_gate_is_where_a_unit_is_read(name: str) -> None:
    """The gate multiplies the unit for the next layer and for the next step, by differences."""
    inputs, x = sequences()
    x = L.GRU(5, name="encoder", return_sequences=True)(x)
    model = model_of(inputs, L.LSTM(5, name="cells")(x))
    data = (random_inputs(model, 6), np.random.default_rng(1).normal(size=(6, 2)))
    graph = ridurre.DependencyGraph(model)
    group = next(g for g in graph.groups if name in g.producers)
    scores = ridurre.criteria.get("gate_taylor").score(graph, data, loss="mse")[group]
    reader = model.get_layer("read" if name == "cells" else "cells").weights[0]
    rows = [reader, model.get_layer(name).cell.recurrent_kernel]

    def loss(unit: int, gate: float) -> float:
        values = [to_numpy(v) for v in rows]
        for v, value in zip(rows, values, strict=True):
            changed = value.copy()
            changed[unit] *= gate
            v.assign(changed)
        error = float(np.square(to_numpy(model(data[0])) - data[1]).mean())
        for v, value in zip(rows, values, strict=True):
            v.assign(value)
        return error

    slopes = np.array([(loss(u, 1.01) - loss(u, 0.99)) / 0.02 for u in range(5)])
    np.testing.assert_allclose(scores, slopes**2, rtol=0.02, atol=1e-6)


def test_readings_of_both_directions_count() -> None:
    inputs, x = sequences(channels=3)
    model = model_of(inputs, L.Bidirectional(L.GRU(5), name="both")(x))
    data = random_inputs(model, 8)
    graph = ridurre.DependencyGraph(model)
    group = next(g for g in graph.groups if g.producers == ("before",))
    criterion = ridurre.criteria.get("wifv")
    scores = type(criterion)(normalize=False).score(graph, data)[group]
    values = to_numpy(model.get_layer("before")(data)).reshape(-1, 3)
    both = model.get_layer("both")
    kernels = [to_numpy(x.cell.kernel) for x in (both.forward_layer, both.backward_layer)]
    norms = sum(np.square(k).sum(axis=1) for k in kernels)
    np.testing.assert_allclose(scores, values.var(axis=0) * norms, rtol=1e-3)


@pytest.mark.parametrize("how", ["batch_norm", "least_squares", "mean", "merge"])
def test_recovery_leaves_recurrent_readers_alone(how: str) -> None:
    model, data = text_model(), texts()
    strategy = ridurre.ChannelPrune(0.5, criterion="l1", recover=how, data=data)
    smaller = ridurre.prune(strategy, model)
    plain = ridurre.prune(ridurre.ChannelPrune(0.5), model)
    assert widths(smaller) == HALVED
    for name in ("both", "stack", "last"):
        pairs = zip(
            smaller.get_layer(name).get_weights(), plain.get_layer(name).get_weights(), strict=True
        )
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_sensitivity_masks_and_reports() -> None:
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(7, 6, name="table")(inputs)
    x = L.RNN([L.SimpleRNNCell(5), L.GRUCell(7)], name="stack")(x)
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="read")(x))
    randomise(model)
    model.compile("sgd", "sparse_categorical_crossentropy")
    data = texts()
    found = ridurre.sensitivity(model, data, amounts=[0.5])
    assert len(found.points) == 3
    sparse = ridurre.prune(ridurre.LevelPrune(0.5), model)
    assert 0.4 < ridurre.model_complexity(sparse).sparsity < 0.6
    assert sparse.get_layer("stack").cell.cells[0].units == 5
    smaller = ridurre.prune(ridurre.ChannelPrune(0.5), model)
    assert "layers: 2 lost channels, 1 cannot lose any" in str(ridurre.compare(model, smaller))


# Removing what is not used


def test_compact_knows_that_a_state_reads_itself() -> None:
    inputs, x = sequences()
    layer = L.SimpleRNN(5, name="cells", return_sequences=True)
    model = model_of(inputs, layer(x))
    read, recurrent = (
        to_numpy(model.get_layer("read").kernel),
        to_numpy(layer.cell.recurrent_kernel),
    )
    read[1:3], recurrent[2] = 0, 0  # unit 1 is still read by its own layer
    model.get_layer("read").kernel.assign(read)
    layer.cell.recurrent_kernel.assign(recurrent)
    smaller = ridurre.compact(model)
    assert smaller.get_layer("cells").units == 4
    x = random_inputs(model)
    np.testing.assert_allclose(to_numpy(smaller(x)), to_numpy(model(x)), atol=1e-5)


def test_compact_takes_no_state_for_a_constant() -> None:
    inputs, x = sequences()
    layer = L.LSTM(3, name="cells")  # at the last step the unit is the same for all inputs
    model = model_of(inputs, layer(x))
    for v in (layer.cell.kernel, layer.cell.recurrent_kernel):
        value = to_numpy(v).copy()
        value[:, 1::3] = 0  # its gates depend on nothing; the other units still read it
        v.assign(value)
    smaller = ridurre.compact(model)
    x = random_inputs(model)
    assert smaller.get_layer("cells").units == 3
    np.testing.assert_allclose(to_numpy(smaller(x)), to_numpy(model(x)), atol=1e-5)


def test_training_goes_on_where_it_was() -> None:
    inputs, x = sequences()
    model = model_of(inputs, L.GRU(5, name="cells")(x))
    model.compile("adam", "mse")
    data = random_inputs(model, 8)
    model.fit(data, np.ones((8, 2)), verbose=0)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("cells", [1])
    smaller = plan.exec(keep_compiled=True)
    full, left = (
        [
            to_numpy(v)
            for v in m.optimizer.variables
            if v.path.endswith("cells_gru_cell_kernel_momentum")
        ]
        for m in (model, smaller)
    )
    assert len(full) == len(left) == 1
    np.testing.assert_array_equal(left[0], np.delete(full[0], [1, 6, 11], -1))
    smaller.fit(data, np.ones((8, 2)), verbose=0)
