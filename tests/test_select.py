"""How layers are named."""

import re

import keras
import numpy as np
import pytest
from builders import L

import ridurre
from ridurre.errors import RequestError, UnknownLayerError
from ridurre.graph.select import find_layer, select_layers


def network():
    """conv1, conv2, a nested model `block` with a conv1 of its own and `deep/conv3`, and a head."""
    deep = keras.Sequential([keras.Input((4, 4, 7)), L.Conv2D(3, 1, name="conv3")], name="deep")
    inputs = keras.Input((4, 4, 5))
    block = keras.Model(inputs, deep(L.Conv2D(7, 1, name="conv1")(inputs)), name="block")
    inputs = keras.Input((4, 4, 3), name="picture")
    x = L.Conv2D(3, 1, name="conv1")(inputs)
    x = block(L.Conv2D(5, 1, name="conv2")(x))
    x = L.Flatten(name="flat")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(x), name="network")


ALL = ["conv1", "conv2", "block/conv1", "block/deep/conv3", "flat", "head"]


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture
def layers(model):
    return ridurre.DependencyGraph(model).layers


@pytest.fixture
def select(model, layers):
    return lambda selector: select_layers(model, layers, selector)


def test_layers_of_nested_models_have_full_names(layers):
    assert list(layers) == ALL


# --- many layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("conv2", ["conv2"]),
        ("conv1", ["conv1", "block/conv1"]),  # a name means every layer of that name
        ("block/conv1", ["block/conv1"]),
        ("block", ["block/conv1", "block/deep/conv3"]),
        ("deep", ["block/deep/conv3"]),
        ("block/deep", ["block/deep/conv3"]),
        ("^conv", ["conv1", "conv2"]),
        ("conv.$", ["conv1", "conv2", "block/conv1", "block/deep/conv3"]),
        ("conv[23]", ["conv2", "block/deep/conv3"]),
        ("^(head|flat)$", ["flat", "head"]),
        ("deep/.*", ["block/deep/conv3"]),
        (re.compile("onv2"), ["conv2"]),  # searched, not matched
        (re.compile("BLOCK", re.IGNORECASE), ["block/conv1", "block/deep/conv3"]),
        (1, ["conv1"]),  # the picture is number 0
        (2, ["conv2"]),
        (3, ["block/conv1", "block/deep/conv3"]),
        (-1, ["head"]),
        (np.int64(2), ["conv2"]),
        (lambda layer: isinstance(layer, L.Dense), ["head"]),
        (lambda layer: getattr(layer, "filters", 0) > 3, ["conv2", "block/conv1"]),
        (lambda layer: False, []),
        (lambda layer: True, ALL),
        ([], []),
        (["head", "conv2"], ["conv2", "head"]),  # in the model's order
        (("head", "head"), ["head"]),
        ({"head", 2}, ["conv2", "head"]),
        (frozenset(["flat"]), ["flat"]),
        ([["head", [1]], re.compile("flat"), lambda x: x.name == "conv3"], ["conv1", *ALL[3:]]),
    ],
)
def test_what_a_selector_means(select, selector, expected):
    assert select(selector) == expected


def test_a_layer_means_itself(model, select):
    assert select(model.get_layer("conv1")) == ["conv1"]
    assert select(model.get_layer("block").get_layer("conv1")) == ["block/conv1"]


def test_a_nested_model_means_its_layers(model, select):
    assert select(model.get_layer("block")) == ["block/conv1", "block/deep/conv3"]
    assert select(model.get_layer("block").get_layer("deep")) == ["block/deep/conv3"]


def test_a_shared_layer_is_named_once():
    shared = L.Dense(3, name="shared")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(shared(inputs)))
    graph = ridurre.DependencyGraph(model)
    assert graph.select("shared") == graph.select(shared) == graph.select(1) == ["shared"]


def test_the_indices_of_a_sequential_model_start_with_its_first_layer():
    model = keras.Sequential([keras.Input((3,)), L.Dense(3, name="a"), L.Dense(2, name="b")])
    assert ridurre.DependencyGraph(model).select([0]) == ["a"]


def test_a_name_with_special_characters_is_a_name_first():
    inputs = keras.Input((3,))
    x = L.Dense(3, name="a.b")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="axb")(x))
    graph = ridurre.DependencyGraph(model)
    assert graph.select("a.b") == ["a.b"]
    assert graph.select("a.b$") == ["a.b", "axb"]
    assert graph.select(re.compile("a.b")) == ["a.b", "axb"]


def test_predicates_see_every_layer_once(select):
    seen = []
    select(lambda layer: seen.append(layer.name))
    assert seen == ["conv1", "conv2", "conv1", "conv3", "flat", "head"]


# --- one layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv2", "block/conv1", "conv1", "block/deep/conv3"])
def test_a_full_name_finds_one_layer(layers, name):
    assert find_layer(layers, name) == name


def test_a_short_name_will_do_where_it_is_unique(layers):
    assert find_layer(layers, "conv3") == "block/deep/conv3"


def test_a_layer_object_finds_itself(model, layers):
    assert find_layer(layers, model.get_layer("block").get_layer("conv1")) == "block/conv1"


def test_an_ambiguous_name_is_refused():
    def block(name):
        inner = keras.Sequential([keras.Input((3,)), L.Dense(3, name="dense")], name=name)
        return inner

    inputs = keras.Input((3,))
    model = keras.Model(inputs, block("right")(block("left")(inputs)))
    layers = ridurre.DependencyGraph(model).layers
    with pytest.raises(
        UnknownLayerError,
        match=r"Several layers are called 'dense'\. Expected one of the full names: "
        r"\['left/dense', 'right/dense'\]",
    ):
        find_layer(layers, "dense")


# --- mistakes -------------------------------------------------------------------------------------

LIST = r"Layers: conv1, conv2, block/conv1, block/deep/conv3, flat, head\.$"


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("conv22", r"^The model has no layer 'conv22'\. Did you mean 'conv2'.*\? " + LIST),
        ("hed", r"no layer 'hed'\. Did you mean 'head'\? " + LIST),
        ("block/conv2", r"no layer 'block/conv2'\. Did you mean 'block/conv1'"),
        ("zzz", r"^The model has no layer 'zzz'\. " + LIST),
        ("", r"no layer ''"),
        ("^zzz$", r"^The regular expression '\^zzz\$' matches no layer\. " + LIST),
        (re.compile("zzz"), r"^The regular expression 'zzz' matches no layer\. " + LIST),
        (["conv1", "zzz"], r"no layer 'zzz'"),
        (6, r"^Layer index 6 is out of range: there are 6 layers\.$"),
        (-7, r"^Layer index -7 is out of range: there are 6 layers\.$"),
        (L.Dense(2, name="stranger"), r"no layer 'stranger' \(Dense\)\. " + LIST),
    ],
)
def test_what_is_not_there(select, selector, message):
    with pytest.raises(UnknownLayerError, match=message):
        select(selector)


@pytest.mark.parametrize("bad", ["conv(", "[", "*conv", "a{2,1}"])
def test_what_is_no_regular_expression(select, bad):
    with pytest.raises(RequestError, match=re.escape(repr(bad)) + " is no regular expression: "):
        select(bad)


@pytest.mark.parametrize(
    ("selector", "received"),
    [
        (3.5, r"Received: 3\.5"),
        (None, r"Received: None"),
        ([None], r"Received: None"),
        (True, r"Received: True"),
        ({"conv1": 1}, r"Received: \{'conv1': 1\}"),
        (b"conv1", r"Received: b'conv1'"),
        (L.Conv2D, r"Received: <class .*Conv2D'>"),
    ],
)
def test_what_names_no_layer(select, selector, received):
    with pytest.raises(RequestError, match=f"Expected a name, pattern, index.*{received}"):
        select(selector)


@pytest.mark.parametrize("wanted", [3, None, L.Dense(2, name="stranger")])
def test_one_layer_that_is_not_there(layers, wanted):
    with pytest.raises(UnknownLayerError, match=r"no layer .*\. " + LIST):
        find_layer(layers, wanted)


def test_long_lists_of_layers_are_cut_short():
    x = inputs = keras.Input((3,))
    for i in range(12):
        x = L.Dense(3, name=f"dense{i}")(x)
    graph = ridurre.DependencyGraph(keras.Model(inputs, x))
    with pytest.raises(UnknownLayerError, match=r"dense8, dense9 and 2 more\.$"):
        graph.select("zzz")


def test_the_graph_takes_the_same_selectors_for_protection(model):
    graph = ridurre.DependencyGraph(model, protect=["^conv1$", 2, lambda x: x.name == "conv3"])
    assert [g.producers for g in graph.groups] == [("block/conv1",)]
    with pytest.raises(UnknownLayerError, match="'zzz'"):
        ridurre.DependencyGraph(model, protect="zzz")
