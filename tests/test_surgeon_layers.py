"""kerassurgeon's interface: layers are deleted, inserted and replaced, as built by hand."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from builders import L, predict

from ridurre import errors, surgeon
from ridurre.errors import RequestError, UnknownLayerError
from ridurre.surgeon import Surgeon, delete_channels, delete_layer, insert_layer, replace_layer
from ridurre.testing import randomise, snapshot

pytestmark = pytest.mark.core

Tensor = Any


class Kit(dict[str, keras.Layer]):
    """Dense layers by name, made when they are first asked for: a model and the one expected."""

    def __missing__(self, name: str) -> keras.Layer:
        self[name] = L.Dense(3, activation="relu", name=name)
        return self[name]


def functional(connect: Callable[..., Any], count: int = 1, name: str = "model") -> keras.Model:
    """A model with inputs of 3 features; `connect` gets a `Kit` and the input tensors."""
    inputs = [keras.Input((3,), name=f"input_{n}") for n in range(count)]
    return keras.Model(inputs if count > 1 else inputs[0], connect(Kit(), *inputs), name=name)


def check(new: keras.Model, old: keras.Model, expected: keras.Model, *others: keras.Layer) -> None:
    """The new model is the expected one, with the weights of the old one and of other layers."""
    source = {x.name: x for x in [*old.layers, *others]}
    for layer in expected.layers:
        layer.set_weights(source[layer.name].get_weights())
    assert config(new) == config(expected)
    assert len(new.weights) == len(expected.weights)
    for a, b in zip(new.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(value(a), value(b))
    x = [np.random.default_rng(0).normal(size=(4, *t.shape[1:])) for t in new.inputs]
    x = [a.astype("float32") for a in x]
    pairs = zip(run(new, x), run(expected, x), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def run(model: keras.Model, x: list[np.ndarray]) -> list[np.ndarray]:
    y = model(x if len(x) > 1 else x[0], training=False)
    return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(y)]


def value(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable.value)


def config(model: keras.Model) -> str:
    return str(model.get_config() | {"name": ""})


def randomised(model: keras.Model) -> keras.Model:
    randomise(model)
    return model


def chain(*names: str) -> Callable[..., Any]:
    def connect(kit: Kit, x: Tensor) -> Tensor:
        for name in names:
            x = kit[name](x)
        return x

    return connect


def test_a_layer_is_deleted():
    model = randomised(functional(chain("a", "b", "c")))
    before = snapshot(model)
    check(delete_layer(model, model.get_layer("b")), model, functional(chain("a", "c")))
    check(delete_layer(model, "c"), model, functional(chain("a", "b")))
    check(delete_layer(model, "a", copy=True), model, functional(chain("b", "c")))
    assert snapshot(model) == before


def test_one_operation_after_the_other():
    """A layer of the first model means the one of its name in the next."""
    model = randomised(functional(chain("a", "b", "c")))
    b, c = model.get_layer("b"), model.get_layer("c")
    new = insert_layer(delete_layer(model, b), c, built("new"))
    check(new, model, functional(chain("a", "new", "c")), built("new"))
    with pytest.raises(UnknownLayerError, match="no layer 'b'"):
        delete_layer(new, b)


def built(name: str, units: int = 3, seed: int = 1) -> keras.Layer:
    layer = L.Dense(units, activation="relu", name=name)
    layer.build((None, 3))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    return layer


def test_a_layer_is_inserted():
    model, new = randomised(functional(chain("a", "b"))), built("new")
    check(
        insert_layer(model, model.get_layer("b"), new),
        model,
        functional(chain("a", "new", "b")),
        new,
    )
    check(insert_layer(model, "a", new), model, functional(chain("new", "a", "b")), new)
    assert len(new.weights) == 2


def test_a_layer_is_replaced():
    model, new = randomised(functional(chain("a", "b", "c"))), built("new")
    check(replace_layer(model, "b", new), model, functional(chain("a", "new", "c")), new)
    check(replace_layer(model, "c", new), model, functional(chain("a", "b", "new")), new)


def test_a_new_layer_may_have_the_old_one_s_name():
    model, new = randomised(functional(chain("a", "b"))), built("b", seed=5)
    replaced = replace_layer(model, "b", new)
    np.testing.assert_array_equal(value(replaced.get_layer("b").kernel), value(new.kernel))
    assert replaced.get_layer("b") is not new


def test_a_new_layer_without_weights_gets_them():
    model = randomised(functional(chain("a", "b")))
    new = L.Dense(7, name="new")
    replaced = replace_layer(model, "b", new)
    assert replaced.output_shape == (None, 7)
    assert not new.built
    inserted = insert_layer(model, "b", L.Dropout(0.5, name="drop"))
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(predict(inserted, x), predict(model, x))


def test_a_block_is_put_in():
    model = randomised(functional(chain("a", "b")))
    block = keras.Sequential([keras.Input((3,)), built("one"), built("two", 3, 2)], name="block")
    new = replace_layer(model, "b", block)
    x = np.ones((2, 3), "float32")
    expected = predict(block, predict(delete_layer(model, "b"), x))
    np.testing.assert_allclose(predict(new, x), expected, rtol=1e-6)
    assert new.get_layer("block") is not block


def shared_twice(kit: Kit, x: Tensor) -> Tensor:
    return kit["d"](kit["b"](kit["c"](kit["b"](kit["a"](x)))))


@pytest.mark.parametrize(
    ("nodes", "left"),
    [(None, "a c d"), ([0], "a c b d"), ([1], "a b c d"), ([0, 1], "a c d")],
)
def test_calls_of_a_shared_layer_are_deleted(nodes, left):
    model = randomised(functional(shared_twice))
    new = delete_layer(model, model.get_layer("b"), node_indices=nodes)
    check(new, model, functional(chain(*left.split())))


@pytest.mark.parametrize(
    ("nodes", "left"), [(None, "a n b c n b d"), ([0], "a n b c b d"), ([1], "a b c n b d")]
)
def test_a_layer_is_inserted_before_calls_of_a_shared_one(nodes, left):
    model, new = randomised(functional(shared_twice)), built("n")
    check(
        insert_layer(model, "b", new, node_indices=nodes),
        model,
        functional(chain(*left.split())),
        new,
    )


@pytest.mark.parametrize(
    ("nodes", "left"), [(None, "a n c n d"), ([0], "a n c b d"), ([1], "a b c n d")]
)
def test_calls_of_a_shared_layer_are_replaced(nodes, left):
    model, new = randomised(functional(shared_twice)), built("n")
    check(
        replace_layer(model, "b", new, node_indices=nodes),
        model,
        functional(chain(*left.split())),
        new,
    )


def test_calls_are_numbered_in_the_order_in_which_they_were_made():
    """Not in the order in which they run: here the second one made runs first."""

    def connect(kit: Kit, x: Tensor) -> list[Tensor]:
        late = kit["s"](kit["b"](kit["a"](x)))
        early = kit["s"](x)
        return [late, kit["c"](early)]

    def without(index: int) -> Callable[..., Any]:
        def expected(kit: Kit, x: Tensor) -> list[Tensor]:
            late = kit["b"](kit["a"](x))
            late = late if index == 0 else kit["s"](late)
            early = x if index == 1 else kit["s"](x)
            return [late, kit["c"](early)]

        return expected

    model = randomised(functional(connect))
    for index in (0, 1):
        check(delete_layer(model, "s", node_indices=[index]), model, functional(without(index)))


def test_branches_and_several_inputs_and_outputs():
    """A tensor with two readers: what is inserted before one of them is not before the other."""

    def connect(insert: bool = False, delete: bool = False, replace: bool = False) -> Any:
        def wire(kit: Kit, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            x = kit["a"](left)
            y = kit["b"](kit["n"](x) if insert else x)
            z = x if delete else kit["c"](x)
            both = L.Add(name="add")([y, right])
            both = (
                L.Maximum(name="new_merge")([both, z])
                if replace
                else L.Multiply(name="merge")([both, z])
            )
            return {"one": kit["d"](both), "other": kit["e"](x)}

        return wire

    model, new = randomised(functional(connect(), 2)), built("n")
    check(insert_layer(model, "b", new), model, functional(connect(insert=True), 2), new)
    check(delete_layer(model, "c"), model, functional(connect(delete=True), 2))
    merge = L.Maximum(name="new_merge")
    check(replace_layer(model, "merge", merge), model, functional(connect(replace=True), 2), merge)
    jobs = Surgeon(model)
    jobs.add_job("insert_layer", "b", new_layer=new)
    jobs.add_job("delete_layer", "c")
    jobs.add_job("replace_layer", "merge", new_layer=merge)
    expected = functional(connect(insert=True, delete=True, replace=True), 2)
    check(jobs.operate(), model, expected, new, merge)
    assert list(jobs.operate().output) == ["one", "other"]


def test_a_layer_behind_the_same_output_layer_is_deleted():
    """Both outputs are made by one layer."""

    def connect(delete: bool) -> Any:
        def wire(kit: Kit, x: Tensor) -> list[Tensor]:
            x = kit["a"](x)
            y = kit["b"](x)
            x = x if delete else kit["c"](x)
            ends = [kit["d"](y), kit["d"](x)]  # in the order in which they run
            return ends[::-1]

        return wire

    model = randomised(functional(connect(delete=False)))
    check(delete_layer(model, "c"), model, functional(connect(delete=True)))


def nest(*names: str, twice: bool = False) -> Callable[..., Any]:
    def connect(kit: Kit, x: Tensor) -> Tensor:
        inner = functional(chain(*names), name="inner")
        x = inner(kit["head"](x))
        return inner(x) if twice else x

    return connect


@pytest.mark.parametrize("twice", [False, True])
def test_layers_of_a_nested_model(twice):
    model = randomised(functional(nest("a", "b", "c", twice=twice)))
    before = snapshot(model)
    inner = model.get_layer("inner")
    jobs = Surgeon(model)
    jobs.add_job("delete_layer", inner.get_layer("b"))
    jobs.add_job("insert_layer", "inner/c", new_layer=built("n"))
    new = jobs.operate()
    expected = functional(nest("a", "n", "c", twice=twice))
    sources = {
        "n": built("n"),
        "head": model.get_layer("head"),
        "a": inner.get_layer("a"),
        "c": inner.get_layer("c"),
    }
    for layer in [expected.get_layer("head"), *expected.get_layer("inner").layers[1:]]:
        layer.set_weights(sources[layer.name].get_weights())
    assert config(new) == config(expected)
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(predict(new, x), predict(expected, x))
    assert snapshot(model) == before


def test_a_nested_model_is_deleted_and_replaced():
    model = randomised(functional(nest("a", "b")))
    check(delete_layer(model, "inner"), model, functional(chain("head")))
    new = built("n")
    check(
        replace_layer(model, model.get_layer("inner"), new),
        model,
        functional(chain("head", "n")),
        new,
    )


def stack(*names: str) -> keras.Model:
    kit = Kit()
    return keras.Sequential([keras.Input((3,), name="x"), *(kit[n] for n in names)], name="stack")


def test_a_sequential_model_stays_one():
    model = randomised(stack("a", "b", "c", "d"))
    jobs = Surgeon(model)
    jobs.add_job("delete_layer", model.layers[0])
    jobs.add_job("replace_layer", "b", new_layer=built("n"))
    jobs.add_job("insert_layer", "d", new_layer=built("m", seed=3))
    new = jobs.operate()
    assert isinstance(new, keras.Sequential)
    check(new, model, stack("n", "c", "m", "d"), built("n"), built("m", seed=3))


def test_one_new_layer_in_two_places_is_shared():
    model, new = randomised(functional(chain("a", "b"))), built("n")
    jobs = Surgeon(model)
    for name in "ab":
        jobs.add_job("insert_layer", name, new_layer=new)
    check(jobs.operate(), model, functional(chain("n", "a", "n", "b")), new)


def test_layers_and_channels_at_once():
    """Channels go through what the other jobs put in their way, by hand."""
    inputs = keras.Input((6, 7, 3))
    x = L.Conv2D(5, 3, name="made")(inputs)
    x = L.Activation("softmax", name="barrier")(x)
    model = keras.Model(inputs, L.Conv2D(4, 1, name="read")(L.ReLU(name="relu")(x)))
    randomise(model)
    with pytest.raises(RequestError, match="mixes all"):
        delete_channels(model, "made", [1])
    jobs = Surgeon(model)
    jobs.add_job("delete_channels", "made", channels=[1, -1])
    jobs.add_job("delete_layer", "barrier")
    jobs.add_job("replace_layer", "relu", new_layer=L.ELU(name="elu"))
    jobs.add_job("insert_layer", "read", new_layer=L.BatchNormalization(name="bn"))
    new = jobs.operate()
    assert [x.name for x in new.layers[1:]] == ["made", "elu", "bn", "read"]
    assert new.get_layer("bn").gamma.shape == (3,)
    kernel, bias = model.get_layer("read").get_weights()
    np.testing.assert_array_equal(value(new.get_layer("read").kernel), np.delete(kernel, [1, 4], 2))
    kernel, _ = model.get_layer("made").get_weights()
    np.testing.assert_array_equal(value(new.get_layer("made").kernel), np.delete(kernel, [1, 4], 3))


def test_flags_and_settings_survive():
    model = randomised(functional(chain("a", "b", "c")))
    model.get_layer("c").trainable = False
    new = built("n")
    new.trainable = False
    changed = insert_layer(delete_layer(model, "a"), "b", new)
    assert [x.trainable for x in changed.layers[1:]] == [False, True, False]


def test_the_result_survives_a_file(tmp_path):
    model = randomised(functional(shared_twice))
    new = replace_layer(delete_layer(model, "c"), "b", built("n"), node_indices=[1])
    new.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(predict(loaded, x), predict(new, x))


def wide(kit: Kit, x: Tensor) -> Tensor:
    x = L.Dense(5, name="wide")(x)
    x = L.Dense(4, name="narrow")(x)
    return L.Add(name="add")([x, L.Dense(4, name="side")(x)])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: delete_layer(m, "wide"), r"'narrow'.*\(5, 4\).*would need.*\(3, 4\)"),
        (
            lambda m: replace_layer(m, "wide", L.Dense(7, name="n")),
            r"'narrow'.*its weights do not fit",
        ),
        (
            lambda m: replace_layer(m, "side", L.Dense(7, name="n")),
            "cannot be put together.*'side'",
        ),
        (lambda m: replace_layer(m, "narrow", built("n", 4)), "'n'.*its weights do not fit"),
        (lambda m: delete_layer(m, "add"), "has 2 inputs"),
        (lambda m: insert_layer(m, "add", L.ReLU()), "has 2 inputs"),
        (lambda m: insert_layer(m, "side", L.ReLU(name="add")), '"add" is used 2 times'),
        (lambda m: insert_layer(m, "side", m.get_layer("wide")), "stands in the model already"),
        (lambda m: insert_layer(m, "side", m), "stands in the model already"),
        (lambda m: insert_layer(m, "side", "relu"), "Expected new_layer to be a layer"),
        (lambda m: insert_layer(m, "side", None), "needs `new_layer`"),
        (lambda m: replace_layer(m, "side", keras.Input((3,))), "Expected new_layer to be a layer"),
        (lambda m: delete_layer(m, "sid"), "Did you mean 'side'"),
        (lambda m: delete_layer(m, m.layers[0]), "is an input of the model"),
        (lambda m: delete_layer(m, "input_0"), "is an input of the model"),
        (lambda m: delete_layer(m, "side", node_indices=[1]), r"some of \[0\]"),
        (lambda m: delete_layer(m, "side", node_indices=[0, 0]), "each once"),
        (lambda m: delete_layer(m, "side", node_indices=[]), "or None for all"),
        (lambda m: delete_layer(m, "side", node_indices=0), "to be a list"),
        (lambda m: Surgeon(m).add_job("delete_leyer", "side"), "Did you mean 'delete_layer'"),
        (lambda m: Surgeon(m).add_job("delete_layer", "side", channels=[0]), "takes no `channels`"),
        (lambda m: Surgeon(m).add_job("delete_layer", "side", new_layer=L.ReLU()), "takes no `new"),
        (lambda m: Surgeon(m).add_job("delete_channels", "side"), "needs `channels`"),
    ],
)
def test_what_makes_no_sense_is_refused(act, message):
    model = randomised(functional(wide))
    before = snapshot(model)
    with pytest.raises(RequestError, match=message) as caught:
        act(model)
    assert isinstance(caught.value, ValueError)
    assert snapshot(model) == before


@pytest.mark.parametrize("model", [stack("a"), functional(chain("a"))], ids=["stack", "chain"])
def test_the_last_layer_stays(model):
    with pytest.raises(RequestError, match=r"every layer|nothing would be left between"):
        delete_layer(model, "a")


def test_one_job_per_call():
    model = functional(shared_twice)
    jobs = Surgeon(model)
    jobs.add_job("delete_layer", "b", node_indices=[0])
    jobs.add_job("insert_layer", "b", new_layer=L.ReLU(), node_indices=[1])
    with pytest.raises(RequestError, match="delete_channels at 'b', where.*insert_layer at 'b'"):
        jobs.add_job("delete_channels", "b", channels=[0], node_indices=[1])
    assert len(jobs.operate().layers) == 6


def test_what_is_no_model_is_refused():
    with pytest.raises(errors.NotAModelError):
        surgeon.delete_layer("model", "a")


def test_masks_are_handed_on():
    """A layer that is called with a mask has one input all the same."""

    def connect(*behind: keras.Layer) -> keras.Model:
        x = inputs = keras.Input((5,), dtype="int32")
        x = L.Embedding(7, 3, mask_zero=True, name="e")(x)
        for layer in behind:
            x = layer(x)
        return keras.Model(inputs, x)

    def average() -> keras.Layer:
        return L.GlobalAveragePooling1D(name="average")

    block = L.SimpleRNN(3, return_sequences=True, name="block")
    model = randomised(connect(block, average()))
    x = np.array([[1, 2, 0, 0, 0], [3, 0, 4, 5, 0]])
    plain = connect(average())
    plain.set_weights(model.get_weights()[:1])
    expected = predict(plain, x)
    np.testing.assert_allclose(predict(delete_layer(model, "block"), x), expected, rtol=1e-6)
    jobs = Surgeon(model)
    jobs.add_job("insert_layer", "average", new_layer=L.Dropout(0.1, name="more"))
    jobs.add_job("replace_layer", "block", new_layer=L.Activation("linear", name="nothing"))
    np.testing.assert_allclose(predict(jobs.operate(), x), expected, rtol=1e-6)
    assert not np.allclose(predict(connect_without_mask(model), x), expected)


def connect_without_mask(model: keras.Model) -> keras.Model:
    x = inputs = keras.Input((5,), dtype="int32")
    x = L.GlobalAveragePooling1D()(L.Embedding(7, 3)(x))
    plain = keras.Model(inputs, x)
    plain.set_weights(model.get_weights()[:1])
    return plain
