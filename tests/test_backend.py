"""What `ridurre.backend` takes from Keras' private API, held against the installed version."""

import keras
import numpy as np
import pytest
from builders import L, chain, residual
from keras import ops

from ridurre import backend
from ridurre.backend.making import recreate
from ridurre.backend.state import copy_hidden_state
from ridurre.backend.training import compile_like, optimizer_slots
from ridurre.data import random_inputs
from ridurre.errors import ModelError, NotAModelError

# --- reading a graph ------------------------------------------------------------------------------


def test_a_functional_model_is_read_in_running_order():
    model = residual()
    graph = backend.functional_graph(model)
    assert [n.operation for n in graph.nodes] == model.layers[1:]
    assert [id(t) for t in graph.inputs] == [id(t) for t in model.inputs]
    assert [id(t) for t in graph.outputs] == [id(t) for t in model.outputs]
    made = {id(t) for t in graph.inputs}
    for node in graph.nodes:
        read = keras.tree.flatten((node.args, node.kwargs))
        assert all(id(t) in made for t in read)
        assert not made & {id(t) for t in node.outputs}
        made |= {id(t) for t in node.outputs}
    assert made >= {id(t) for t in graph.outputs}


def test_every_tensor_is_the_one_that_the_layers_made():
    model = chain()
    for node in backend.functional_graph(model).nodes:
        assert node.args[0] is node.operation.input
        assert node.outputs == [node.operation.output]


def test_arguments_are_kept_constants_included():
    inputs = keras.Input((4, 6))
    x = ops.concatenate([inputs, ops.multiply(np.ones((1, 4, 2)), inputs[..., :2])], axis=-1)
    x = ops.pad(x, [[0, 0], [0, 0], [1, 2]], constant_values=7.0)
    x = L.Dense(3, name="dense")(x, training=False)
    nodes = backend.functional_graph(keras.Model(inputs, x)).nodes
    by_kind = {type(n.operation).__name__: n for n in nodes}
    assert list(by_kind)[-3:] == ["Concatenate", "Pad", "Dense"]
    (multiply,) = (n for n in nodes if type(n.operation).__name__ == "Multiply")
    constant = next(a for a in multiply.args if not isinstance(a, keras.KerasTensor))
    np.testing.assert_array_equal(ops.convert_to_numpy(constant), np.ones((1, 4, 2)))
    (getitem,) = (n for n in nodes if type(n.operation).__name__ == "GetItem")
    assert getitem.args[0] is inputs
    assert getitem.args[1] == (Ellipsis, slice(None, 2))
    parts = by_kind["Concatenate"].args[0]
    assert parts[0] is inputs
    assert by_kind["Dense"].kwargs == {"training": False}
    assert by_kind["Pad"].kwargs.get("constant_values", 7.0) == 7.0


def test_a_shared_layer_has_one_node_per_call():
    shared = L.Dense(3, name="shared")
    inputs = keras.Input((3,))
    once = shared(inputs)
    graph = backend.functional_graph(keras.Model(inputs, shared(once)))
    assert [n.operation for n in graph.nodes] == [shared, shared]
    assert graph.nodes[0].args[0] is inputs
    assert graph.nodes[1].args[0] is once


def test_calls_outside_the_model_are_not_read():
    shared = L.Dense(3, name="shared")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(inputs))
    shared(keras.Input((3,)))
    shared(model.output)
    assert len(backend.functional_graph(model).nodes) == 1
    assert len(shared._inbound_nodes) == 3


def test_a_part_of_a_model_is_read_alone():
    whole = chain()
    part = keras.Model(whole.get_layer("bn").output, whole.get_layer("b").output)
    assert [n.operation.name for n in backend.functional_graph(part).nodes] == ["relu", "b"]


def test_several_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    x = L.Concatenate()([a, b])
    model = keras.Model({"b": b, "a": a}, ops.split(x, [3], axis=-1))
    graph = backend.functional_graph(model)
    assert [id(t) for t in graph.inputs] == [id(t) for t in model.inputs]
    assert [id(t) for t in graph.outputs] == [id(t) for t in model.outputs]
    assert len(graph.nodes[-1].outputs) == 2


@pytest.mark.parametrize("named_input", [True, False])
def test_a_sequential_model_is_read_like_a_functional_one(named_input):
    layers = [L.Dense(3, name="one"), L.Dense(2, name="two")]
    if named_input:
        model = keras.Sequential([keras.Input((5,)), *layers])
    else:
        model = keras.Sequential(layers)
        model.build((None, 5))
    graph = backend.functional_graph(model)
    assert [n.operation for n in graph.nodes] == layers
    assert [id(t) for t in graph.inputs] == [id(t) for t in model.inputs]
    assert [id(t) for t in graph.outputs] == [id(t) for t in model.outputs]


def test_a_nested_model_is_one_node():
    block = keras.Sequential([keras.Input((3,)), L.Dense(3)], name="block")
    inputs = keras.Input((3,))
    graph = backend.functional_graph(keras.Model(inputs, block(inputs)))
    assert [n.operation for n in graph.nodes] == [block]
    assert backend.has_graph(graph.nodes[0].operation)


def test_reading_changes_nothing():
    model = residual()
    config, counts = model.get_config(), backend.node_counts(model)
    backend.functional_graph(model)
    assert (model.get_config(), backend.node_counts(model)) == (config, counts)


# --- what has a graph -----------------------------------------------------------------------------


class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


class Labelled(keras.Model):
    """A functional model under a name of its own."""


class Twice(keras.Model):
    """Its computation is not its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training)


class TwiceInARow(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training)


def functional(cls):
    inputs = keras.Input((3,))
    return cls(inputs, L.Dense(2)(inputs))


def called_subclass():
    model = Plain()
    model(np.ones((1, 3), "float32"))
    return model


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: functional(keras.Model), True),
        (lambda: functional(Labelled), True),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]), True),
        (lambda: keras.Sequential([L.Dense(2)]), False),
        (lambda: functional(Twice), False),
        (lambda: TwiceInARow([keras.Input((3,)), L.Dense(2)]), False),
        (Plain, False),
        (called_subclass, False),
        (lambda: L.Dense(2), False),
        (lambda: "model", False),
    ],
)
def test_what_has_a_graph(build, expected):
    thing = build()
    assert backend.has_graph(thing) is expected
    if isinstance(thing, keras.Model) and not expected:
        with pytest.raises(ModelError, match="has no graph of layers"):
            backend.functional_graph(thing)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: None, NotAModelError, "Expected a Keras 3 model .* Received: builtins.NoneType"),
        (lambda: L.Dense(2), NotAModelError, r"Received: keras\..*\.Dense\.$"),
        (lambda: keras.Sequential([L.Dense(2)], name="new"), ModelError, "'new' is not built"),
        (Plain, ModelError, r"'plain' \(Plain\) is not built.* Call it once on a batch of data"),
        (
            lambda: functional(Twice),
            ModelError,
            r"\(Twice\) is a Functional .* a `call` of its own",
        ),
    ],
)
def test_models_that_cannot_be_analysed(build, error, message):
    with pytest.raises(error, match=message):
        backend.check_model(build())


def test_quantised_models_cannot_be_analysed():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2, name="head")(inputs))
    backend.check_model(model)
    model.get_layer("head").quantize("int8")
    with pytest.raises(ModelError, match=r"'head' is quantised \(int8\)\. Prune the float model"):
        backend.check_model(model)


def test_lora_models_cannot_be_analysed():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2, name="head")(inputs))
    model.get_layer("head").enable_lora(1)
    with pytest.raises(ModelError, match="LoRA is enabled on the layer 'head'.*Merge it first"):
        backend.check_model(model)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (type(functional(keras.Model)), True),
        (type(functional(Labelled)), True),
        (Plain, False),
        (keras.Sequential, False),
    ],
)
def test_which_classes_are_built_from_inputs_and_outputs(cls, expected):
    assert backend.is_functional_like(cls) is expected


# --- layers and variables -------------------------------------------------------------------------


def test_the_source_of_an_input_is_its_layer():
    model = chain()
    assert backend.input_source(model.inputs[0]) is model.layers[0]
    sequential = keras.Sequential([keras.Input((3,), name="here"), L.Dense(2)])
    assert backend.input_source(sequential.inputs[0]).name == "here"


def test_parameters_are_what_training_would_change():
    norm = L.BatchNormalization()
    norm.build((None, 5))
    expected = {id(norm.gamma), id(norm.beta)}
    assert backend.parameters_of(norm) == expected
    norm.trainable = False
    assert backend.parameters_of(norm) == expected
    dropout = L.Dropout(0.5)
    assert dropout.variables
    assert backend.parameters_of(dropout) == set()


def test_a_layer_built_frozen_has_parameters():
    dense = L.Dense(2, trainable=False)
    dense.build((None, 3))
    assert backend.parameters_of(dense) == {id(dense.kernel), id(dense.bias)}


def test_all_layers_at_every_depth_outer_ones_first():
    inner = keras.Sequential([keras.Input((3,)), L.Dense(3, name="deep")], name="inner")
    inputs = keras.Input((3,), name="picture")
    model = keras.Model(inputs, L.Bidirectional(L.LSTM(3, name="cells"))(inner(inputs)[:, None]))
    names = [x.name for x in backend.all_layers(model)]
    assert {"inner", "deep", "picture"} <= set(names)
    assert any("cells" in n for n in names)
    assert names.index("inner") < names.index("deep")
    assert model.name not in names


def test_own_variables_come_in_the_same_order_for_a_copy():
    layer = L.SeparableConv2D(7, 3)
    layer.build((None, 5, 5, 3))
    copy = recreate(layer, {})
    copy.build((None, 5, 5, 3))
    names = [v.name for v in backend.own_variables(layer)]
    assert names == [v.name for v in backend.own_variables(copy)]
    assert sorted(names) == ["bias", "depthwise_kernel", "pointwise_kernel"]


def operation(function):
    """The operation behind a function of a symbolic tensor; its class is not public."""
    inputs = keras.Input((2, 3))
    return backend.functional_graph(keras.Model(inputs, function(inputs))).nodes[-1].operation


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: ops.transpose(x, (0, 2, 1)), "Transpose"),
        (lambda x: ops.concatenate([x, x], axis=1), "Concatenate"),
        (lambda x: x + 1, "Add"),
        (lambda x: x[:, 0], "GetItem"),
        (ops.relu, "Relu"),
        (L.Dense(2), None),
        (L.Permute((2, 1)), None),
    ],
)
def test_library_operations_are_known_by_their_class(function, expected):
    assert backend.library_operation(operation(function)) == expected


def test_foreign_operations_are_not_the_librarys():
    class Transpose(keras.Operation):
        def call(self, x):
            return x

    assert backend.library_operation(Transpose()) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (L.Conv2D(5, 3), (None, 6, 7, 3)),
        (L.Conv1D(5, 3, data_format="channels_first"), (None, 3, 6)),
        (L.BatchNormalization(axis=1), (None, 4, 5)),
    ],
)
def test_the_shape_that_a_layer_was_built_for(layer, shape):
    layer.build(shape)
    assert backend.build_shape(layer) == shape


def test_node_counts_see_every_call():
    model = residual()
    before = {name: rest for name, *rest in backend.node_counts(model)}
    assert before["stem"] == [1, 2]
    assert before["add"] == [1, 1]
    model.get_layer("inner")(model.get_layer("stem").output)
    after = {name: rest for name, *rest in backend.node_counts(model)}
    assert after["inner"] == [2, 1]
    assert after["stem"] == [1, 3]


def test_node_counts_look_into_nested_models():
    block = keras.Sequential([keras.Input((3,)), L.Dense(3, name="deep")], name="block")
    inputs = keras.Input((3,))
    names = [name for name, *_ in backend.node_counts(keras.Model(inputs, block(inputs)))]
    assert names == ["block", "deep"]


# --- making copies --------------------------------------------------------------------------------


def test_a_layer_is_recreated_with_changes():
    layer = L.Conv2D(5, 3, padding="same", name="odd", trainable=False, dtype="float16")
    new = recreate(layer, {"filters": 3})
    assert new.get_config() == layer.get_config() | {"filters": 3}
    assert not new.built


class Apply(keras.Operation):
    """An operation that has no configuration: a function cannot be written down."""

    def __init__(self, function, times):
        super().__init__()
        self.function = function
        self.times = times

    def call(self, x):
        return self.function(x) * self.times

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_an_operation_without_a_configuration_is_copied():
    old = operation(Apply(abs, times=2))
    before = dict(vars(old))
    new = recreate(old, {"times": 3})
    assert type(new) is Apply
    assert (new.function, new.times) == (abs, 3)
    assert new._inbound_nodes == new._outbound_nodes == []
    assert len(old._inbound_nodes) == 1
    assert vars(old) == before
    np.testing.assert_array_equal(ops.convert_to_numpy(new(np.array([-1.0]))), [3])


@pytest.mark.parametrize(
    ("function", "changes", "kept"),
    [
        (lambda x: ops.transpose(x, (0, 2, 1)), {}, {"axes": (0, 2, 1)}),
        (lambda x: ops.reshape(x, (-1, 6)), {"newshape": (-1, 3)}, {}),
        (lambda x: ops.concatenate([x, x], axis=1), {}, {"axis": 1}),
        (lambda x: ops.split(x, [2], axis=2), {"indices_or_sections": (1,)}, {"axis": 2}),
        (lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 0]]), {}, {"mode": "constant"}),
        (lambda x: x + 1.0, {}, {}),
    ],
)
def test_an_operation_is_recreated_with_changes_and_without_its_past(function, changes, kept):
    old = operation(function)
    before = dict(vars(old))
    new = recreate(old, changes)
    assert new is not old
    assert type(new) is type(old)
    for name, value in (changes | kept).items():
        assert getattr(new, name) == value
    assert not new._inbound_nodes
    assert not new._outbound_nodes
    assert old._inbound_nodes
    assert vars(old) == before


def test_a_lambda_is_recreated_with_its_function():
    layer = L.Lambda(
        lambda x, by: x * by, output_shape=(3,), arguments={"by": 3}, name="odd", dtype="float64"
    )
    new = recreate(layer, {})
    assert new is not layer
    assert (new.name, new.function, new.arguments) == ("odd", layer.function, {"by": 3})
    assert new.dtype_policy == layer.dtype_policy
    np.testing.assert_array_equal(ops.convert_to_numpy(new(np.ones((2, 3)))), 3 * np.ones((2, 3)))
    assert new.compute_output_shape((2, 3)) == (2, 3)


def test_a_layer_that_cannot_be_recreated_is_named():
    class Greedy(L.Layer):
        def __init__(self, size, **options):
            super().__init__(**options)
            self.size = size

        def get_config(self):
            return super().get_config() | {"size": self.size, "more": 1}

    with pytest.raises(ModelError, match=r"'odd' \(Greedy\) cannot be re-created(.|\n)*get_config"):
        recreate(Greedy(3, name="odd"), {})


def adapted(layer, data):
    layer.adapt(data)
    return layer, data


@pytest.mark.parametrize(
    "build",
    [
        lambda: adapted(L.Normalization(), np.array([[1.0, 2, 3], [3, 2, 9]], "float32")),
        lambda: adapted(L.StringLookup(), np.array([["a", "b"], ["b", "z"]])),
        lambda: (L.StringLookup(vocabulary=["a", "b"]), np.array([["b", "z"]])),
        lambda: (L.Dense(3), np.ones((1, 3), "float32")),
    ],
    ids=["normalization", "lookup", "given vocabulary", "dense"],
)
def test_what_layers_know_besides_their_variables_is_copied(build):
    old, data = build()
    expected = ops.convert_to_numpy(old(data))
    new = recreate(old, {})
    if not isinstance(new, L.StringLookup):
        new.build(data.shape)
    for a, b in zip(new.variables, old.variables, strict=True):
        a.assign(b)
    copy_hidden_state(old, new)
    np.testing.assert_array_equal(ops.convert_to_numpy(new(data)), expected)


# --- optimizers -----------------------------------------------------------------------------------

OPTIMIZERS = ["sgd", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "rmsprop", "ftrl"]


def compiled(optimizer, metrics=None):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(2)(L.Dense(5)(inputs)))
    model.compile(optimizer, "mse", metrics=metrics)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lion", "muon", "momentum"])
def test_every_state_of_an_optimizer_belongs_to_a_weight(name):
    momentum = keras.optimizers.SGD(momentum=0.9) if name == "momentum" else None
    model = compiled(momentum or name)
    slots = optimizer_slots(model.optimizer)
    states = [v for v in model.optimizer.variables if len(v.shape)]
    assert {id(v) for v in states} == slots.keys()
    for state in states:
        index, lacking = slots[id(state)]
        assert lacking is None
        assert state.shape == model.trainable_variables[index].shape
    if name != "sgd":
        assert states


def test_adafactor_keeps_averages_over_an_axis():
    model = compiled("adafactor")
    slots = optimizer_slots(model.optimizer)
    for state in model.optimizer.variables:
        if id(state) in slots:
            index, lacking = slots[id(state)]
            shape = list(model.trainable_variables[index].shape)
            if lacking is not None:
                shape.pop(lacking)
            assert list(state.shape) == shape
    assert {lacking for _, lacking in slots.values()} == {None, -1, -2}


def test_a_wrapped_optimizer_is_seen_through():
    model = compiled(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    slots = optimizer_slots(model.optimizer)
    assert len(slots) == 2 * len(model.trainable_variables)


def test_a_model_is_compiled_like_another():
    squares = keras.metrics.MeanSquaredError(name="squares")
    original = compiled(keras.optimizers.Adam(0.125), ["mae", squares])
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    expected = original.evaluate(x, y, verbose=0, return_dict=True)
    model = keras.models.clone_model(original)
    model.set_weights(original.get_weights())
    optimizer = compile_like(model, original)
    assert model.optimizer is optimizer is not original.optimizer
    assert type(optimizer) is keras.optimizers.Adam
    assert float(optimizer.learning_rate) == 0.125
    assert optimizer.built
    before = [v.numpy() for v in squares.variables]
    received = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
    assert received.keys() == expected.keys() == {"loss", "mae", "squares"}
    assert received == pytest.approx(expected, rel=1e-5)
    model.evaluate(x, 9 * y, verbose=0)
    np.testing.assert_array_equal([v.numpy() for v in squares.variables], before)


def test_a_model_that_is_not_compiled_gives_nothing_to_copy():
    model = chain()
    assert compile_like(model, chain()) is None
    assert not model.compiled


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bool"])
def test_tensors_and_variables_become_arrays(dtype):
    value = np.array([[0, 1], [1, 0]], dtype)
    for thing in (ops.convert_to_tensor(value), keras.Variable(value, dtype=dtype), value):
        array = backend.to_numpy(thing)
        assert isinstance(array, np.ndarray)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, value)


def test_an_array_of_a_variable_is_a_copy():
    variable = keras.Variable(np.zeros(3))
    backend.to_numpy(variable)[:] = 7
    assert not backend.to_numpy(variable).any()


def inputs_of(*tensors, **options):
    tensors = list(tensors)
    structure = tensors[0] if len(tensors) == 1 else tensors
    x = ops.cast(tensors[0], "float32")
    return random_inputs(keras.Model(structure, ops.sum(x, axis=-1)), **options)


def test_random_inputs_have_the_models_shapes():
    assert inputs_of(keras.Input((3, 5))).shape == (2, 3, 5)
    assert inputs_of(keras.Input((3, 5)), batch_size=4).shape == (4, 3, 5)
    assert inputs_of(keras.Input(batch_shape=(7, 3))).shape == (7, 3)
    assert inputs_of(keras.Input((None, 3)), open_size=9).shape == (2, 9, 3)
    assert inputs_of(keras.Input((None, 3)), input_shape=(4, 3)).shape == (2, 4, 3)
    both = inputs_of(keras.Input((3,)), keras.Input((5,)))
    assert [x.shape for x in both] == [(2, 3), (2, 5)]


def test_random_inputs_have_the_models_structure():
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    model = keras.Model({"a": a, "b": b}, L.Concatenate()([a, b]))
    inputs = random_inputs(model)
    assert {k: v.shape for k, v in inputs.items()} == {"a": (2, 3), "b": (2, 5)}
    assert model(inputs).shape == (2, 8)


@pytest.mark.parametrize("built_late", [True, False])
def test_random_inputs_of_a_sequential_model(built_late):
    model = keras.Sequential([L.Dense(2)] if built_late else [keras.Input((3,)), L.Dense(2)])
    model.build((None, 3))
    assert model(random_inputs(model)).shape == (2, 2)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_random_whole_numbers_are_small(dtype):
    values = inputs_of(keras.Input((50,), dtype=dtype))
    assert keras.backend.standardize_dtype(values.dtype) == dtype
    assert set(np.unique(values)) == {0, 1}


def test_random_inputs_are_seeded():
    model = chain()
    one, two, other = (ops.convert_to_numpy(random_inputs(model, seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


def test_compiled_models_compute_the_same(rng):
    model = chain()
    x = rng.normal(size=(2, 6, 8, 3)).astype("float32")
    run = backend.run_compiled(model)
    np.testing.assert_allclose(run(x), backend.to_numpy(model(x, training=False)), rtol=1e-5)
    assert isinstance(run(x), np.ndarray)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float16", 2), ("bfloat16", 2), ("mixed_bfloat16", 2), ("float32", 4), ("float64", 8)],
)
def test_bytes_per_number(dtype, size):
    assert backend.bytes_per_number(L.Dense(2, dtype=dtype)) == size


def test_operations_compute_in_the_default_precision():
    assert backend.bytes_per_number(operation(ops.relu)) == 4


def test_changes_count_more_than_the_functions_of_a_layer():
    layer = keras.layers.Dense(3, activation="softmax")
    layer.build((None, 2))
    new = recreate(layer, {"activation": "linear"})
    assert new.activation is keras.activations.linear
    assert recreate(layer, {"units": 2}).activation is keras.activations.softmax
