"""Layers and models of one's own: their code is looked into, and they come back smaller."""

import json
import math
import subprocess
import sys

import keras
import numpy as np
import own_layers as own
import pytest
from keras import layers as L
from keras import ops

import ridurre
from ridurre.backend import to_numpy
from ridurre.backend.opening import open_call
from ridurre.errors import FrozenChannelError, ModelError
from ridurre.testing import check_model, randomise, snapshot

pytestmark = [
    # Keras says so of every layer with sub-layers and without a `build` that it loads.
    pytest.mark.filterwarnings("ignore:.build\\(\\). was called on layer:UserWarning"),
]


def around(*layers, shape=(4, 3), first=6):
    """Layers between one that makes their channels and one that reads them."""
    x = inputs = keras.Input(shape)
    x = L.Dense(first, name="before")(x)
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, L.Dense(2, name="after")(x))
    randomise(model)
    return model


def units(graph):
    return {", ".join(g.producers): g.size for g in graph.groups}


def half_of_every_group(model, seed=0):
    """A plan that takes some of every group that there is."""
    graph = ridurre.DependencyGraph(model)
    rng = np.random.default_rng(seed)
    gone = {
        g: sorted(rng.choice(g.size, max(1, g.size // 2), replace=False).tolist())
        for g in graph.groups
    }
    return graph, graph.get_pruning_plan(gone)


def same_after_loading(model, path, inputs):
    model.save(path)
    loaded = keras.saving.load_model(path)
    expected, received = (to_numpy(m(inputs)) for m in (model, loaded))
    np.testing.assert_allclose(received, expected, atol=1e-6)
    return loaded


def data(model, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *model.inputs[0].shape[1:])).astype("float32")


# --- what goes -----------------------------------------------------------------------------------

#: Layers, the groups of the model around them, and how many plans there are.
LAYERS = {
    "linear": (lambda: [own.Linear(5)], {"before": 6, "linear": 5}),
    "scaled": (lambda: [own.Scaled()], {"before": 6, "scaled": 5}),
    "residual": (lambda: [L.Reshape((2, 2, 6)), own.Residual(3), L.Flatten()], None),
    "encoder": (lambda: [own.Encoder(2, 3, 5)], None),
    "lambda": (lambda: [L.Lambda(lambda x: abs(x) * 2)], {"before": 6}),
    "subclass of dense": (lambda: [own.register(type("Mine", (L.Dense,), {}))(5)], None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_subset_of_channels_goes_exactly(name):
    build, groups = LAYERS[name]
    model = around(*build(), first=6 if name != "encoder" else 3)
    found = units(ridurre.DependencyGraph(model))
    if groups is not None:
        assert list(found.values()) == list(groups.values())
    assert check_model(model) >= sum(2**n - 2 for n in found.values() if n < 7) / 2


@pytest.mark.core
def test_a_block_with_heads_loses_the_same_of_every_head(tmp_path):
    model = around(own.Block(6, heads=2, name="block"))
    graph = ridurre.DependencyGraph(model)
    assert sorted(units(graph).values()) == [3, 5, 6]
    group = next(g for g in graph.groups if g.size == 3)
    plan = graph.get_pruning_plan(group, [1])
    removed = next(v for k, v in plan.removed.items() if k.endswith("after/kernel"))
    assert [len(v) for v in removed.values()] == [2]
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) < 1e-5
    block = smaller.get_layer("block")
    assert isinstance(block, own.Block) and (block.width, block.heads) == (4, 2)
    same_after_loading(smaller, tmp_path / "block.keras", data(model))


@pytest.mark.core
def test_heads_and_sizes_of_attention_by_hand(tmp_path):
    model = around(own.HandMade(2, 3, name="mine"))
    graph, plan = half_of_every_group(model)
    assert len(graph.groups) >= 2
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) < 1e-5
    assert smaller.count_params() < model.count_params()
    same_after_loading(smaller, tmp_path / "mine.keras", data(model))


@pytest.mark.core
def test_a_transformers_layer_loses_heads_and_units_of_its_mlp():
    model = around(own.Encoder(3, 5, 7, name="encoder"), first=6)
    graph = ridurre.DependencyGraph(model)
    sizes = {g.size: g for g in graph.groups}
    plan = graph.get_pruning_plan({sizes[7]: [0, 4, 6], sizes[3]: [1]})
    assert plan.exact
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) < 1e-5
    layer = smaller.get_layer("encoder")
    assert layer.attention.num_heads == 2 and layer.up.units == 4
    assert layer.attention.query_dense.kernel.shape == (6, 2, 5)


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.core
def test_a_size_that_the_configuration_names_needs_nothing_of_ridurre(tmp_path):
    model = around(own.Linear(5, name="mine"))
    graph = ridurre.DependencyGraph(model)
    smaller = graph.get_pruning_plan("mine", [0, 3]).exec()
    layer = smaller.get_layer("mine")
    assert type(layer) is own.Linear and layer.units == 3
    np.testing.assert_array_equal(
        to_numpy(layer.b), np.delete(to_numpy(model.get_layer("mine").b), [0, 3])
    )
    smaller.save(tmp_path / "mine.keras")
    assert "ridurre" not in json.dumps(smaller.get_config())


def test_other_sizes_reload_where_ridurre_is_imported(tmp_path):
    model = around(own.Block(6, name="block"))
    graph = ridurre.DependencyGraph(model)
    inner = next(g for g in graph.groups if g.size == 5)
    smaller = graph.get_pruning_plan(inner, [2, 3]).exec()
    layer = smaller.get_layer("block")
    assert isinstance(layer, own.Block) and type(layer) is not own.Block
    x = data(model)
    smaller.save(tmp_path / "block.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", to_numpy(smaller(x, training=False)))
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import keras, ridurre, own_layers\n"
        "import numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1] + '/block.keras')\n"
        "y = np.asarray(keras.ops.convert_to_numpy(model(np.load(sys.argv[1] + '/x.npy'))))\n"
        "np.testing.assert_allclose(y, np.load(sys.argv[1] + '/y.npy'), atol=1e-6)\n"
    )
    here = str(own.__file__).rpartition("/")[0]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), here], check=True, timeout=300)


@pytest.mark.core
def test_smaller_layers_become_smaller_still_and_train_on(tmp_path):
    model = around(own.Block(6), own.Block(6))
    x = data(model, 8)
    for seed in range(2):
        _, plan = half_of_every_group(model, seed)
        smaller = plan.exec()
        assert ridurre.verify(model, smaller, plan) < 1e-4
        model = same_after_loading(smaller, tmp_path / "model.keras", x)
        if not ridurre.DependencyGraph(model).groups:
            break
    before = [to_numpy(v) for v in model.trainable_variables]
    model.compile("sgd", "mse")
    model.fit(x, np.ones((8, 4, 2)), verbose=0)
    after = [to_numpy(v) for v in model.trainable_variables]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert len(model.trainable_variables) == len(around(own.Block(6)).trainable_variables) * 2 - 4


def test_the_users_layers_are_not_touched():
    model = around(own.Nested(), own.Block(4))
    before = snapshot(model)
    _, plan = half_of_every_group(model)
    plan.exec()
    assert snapshot(model) == before


def test_trainable_flags_and_types_survive():
    block = own.Block(6, name="block", dtype="float64")
    model = around(block)
    block.inside.trainable = False
    block.norm.trainable = False
    _, plan = half_of_every_group(model)
    layer = plan.exec().get_layer("block")
    assert not layer.inside.trainable and not layer.norm.trainable and layer.net.trainable
    assert {v.dtype for v in layer.net.weights} == {v.dtype for v in block.net.weights}
    assert layer.compute_dtype == "float64"


def test_optimizer_state_follows():
    model = around(own.Linear(5, name="mine"))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x = data(model, 8)
    model.fit(x, np.ones((8, 4, 2)), verbose=0)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("mine", [1])
    smaller = plan.exec(keep_compiled=True)
    old, new = (
        {v.path.split("/", 1)[-1]: v for v in m.optimizer.variables} for m in (model, smaller)
    )
    (name,) = [k for k in old if k.endswith("mine_b_momentum")]
    np.testing.assert_array_equal(to_numpy(new[name]), np.delete(to_numpy(old[name]), 1))


# --- whole models ---------------------------------------------------------------------------------


def net():
    model = own.Net([5, 7], name="net")
    model(np.zeros((1, 8, 8, 3), "float32"))
    randomise(model)
    return model


@pytest.mark.core
def test_a_subclassed_model(tmp_path):
    model = net()
    before = snapshot(model)
    graph, plan = half_of_every_group(model)
    assert sorted(g.size for g in graph.groups) == [3, 5, 5, 7, 7]
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) < 1e-4
    assert isinstance(smaller, own.Net)
    assert snapshot(model) == before
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    loaded = same_after_loading(smaller, tmp_path / "net.keras", x)
    loaded.compile("sgd", "mse")
    loaded.fit(x, np.zeros((2, 2)), verbose=0)


def test_a_subclassed_model_lands_on_a_target():
    model = net()
    whole = ridurre.model_complexity(model)
    assert whole.parameters == sum(math.prod(v.shape) for v in model.trainable_variables)
    smaller = ridurre.prune(ridurre.ChannelPrune(target=ridurre.MACs(0.5)), model)
    assert 0.3 < ridurre.model_complexity(smaller).macs / whole.macs <= 0.5


@pytest.mark.core
def test_inputs_by_name(tmp_path):
    model = own.Words(5)
    inputs = {
        "tokens": np.array([[0, 2, 6], [1, 1, 5]]),
        "values": np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32"),
    }
    model(inputs)
    randomise(model)
    graph = ridurre.DependencyGraph(model)
    (group,) = graph.groups
    plan = graph.get_pruning_plan(group, [0, 3])
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan, inputs=inputs) < 1e-5
    same_after_loading(smaller, tmp_path / "words.keras", inputs)


# --- found by KerasHub's backbones ---------------------------------------------------------------


@pytest.mark.core
def test_weights_of_one_path_in_two_layers_are_told_apart():
    model = around(own.BuiltEarly(name="a"), own.BuiltEarly(name="b"))
    assert len({v.path for v in model.variables}) < len(model.variables)
    graph = ridurre.DependencyGraph(model)
    assert len(set(graph.paths.values())) == len(graph.paths) == len(model.variables)
    plan = graph.get_pruning_plan("b/up", [1, 4])
    assert ridurre.verify(model, plan.exec(), plan) < 1e-5
    again = ridurre.PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert ridurre.verify(model, ridurre.apply(model, again), again) < 1e-5


def test_a_copy_that_computes_something_else_is_not_taken():
    """Of layers in which nothing goes, too."""
    model = around(own.ForgetsTwice(twice=True, name="odd"), L.Dense(7, name="free"))
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan("free", [0])
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) < 1e-5
    assert type(smaller.get_layer("odd").inner) is own.Twice  # its configuration says Linear


# --- what stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [own.SaysSix, own.ScaleBySize])
def test_what_code_insists_on_is_frozen_before_anything_is_cut(layer):
    model = around(layer(name="mine"))
    graph = ridurre.DependencyGraph(model)
    inner = next(name for name in graph.layers if name.startswith("mine/"))
    with pytest.raises(FrozenChannelError, match="the layer's code does not follow.* at 'mine'"):
        graph.get_pruning_plan(inner, [0])
    assert check_model(model)  # what else there is goes exactly


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (own.Branches, "does not run on symbolic tensors"),
        (own.Remembers, "keeps tensors on itself, as 'last'"),
        (own.Counts, "does not run on symbolic tensors"),
        (own.Idle, "is not used in inference"),
    ],
)
def test_code_that_cannot_be_seen_is_a_barrier(layer, reason):
    inputs = keras.Input((3,))
    x = L.Dense(3, name="before")(inputs)
    if layer is own.Branches:
        layer = own.register(type("Branching", (own.Branches,), {}))
        layer.compute_output_shape = lambda self, shape: shape
    model = keras.Model(inputs, L.Dense(2)(layer(name="odd")(x)))
    with pytest.warns(ridurre.RidurreWarning, match="'odd'"):
        graph = ridurre.DependencyGraph(model)
    assert list(graph.barriers) == ["odd"] and not graph.groups
    with pytest.raises(FrozenChannelError, match=f"(?s)no rule .*register_rule.*{reason}"):
        graph.get_pruning_plan("before", [0])


def test_a_class_that_cannot_be_made_again_keeps_its_channels():
    model = around(own.NoConfig(L.Dense(5, name="inner")))
    graph = ridurre.DependencyGraph(model)
    assert not graph.groups
    with pytest.raises(FrozenChannelError, match="want of a `get_config`.*'no_config'"):
        graph.get_pruning_plan("before", [0])


def test_a_layer_that_is_also_called_elsewhere_is_not_doubled():
    shared = L.Dense(6, name="shared")

    @own.register
    class Borrows(L.Layer):
        def __init__(self):
            super().__init__(name="borrows")
            self.shared = shared

        def call(self, x):
            return self.shared(x)

    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(Borrows()(shared(inputs))))
    with pytest.warns(ridurre.RidurreWarning, match="'borrows'"):
        graph = ridurre.DependencyGraph(model)
    with pytest.raises(FrozenChannelError, match="calls .*shared.* elsewhere too"):
        graph.get_pruning_plan("shared", [0])


def test_a_functional_model_with_a_call_of_its_own_is_refused():
    class Doubled(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs)

    inputs = keras.Input((3,))
    with pytest.raises(ModelError, match="a `call` of its own"):
        ridurre.DependencyGraph(Doubled(inputs, L.Dense(2)(inputs)))


# --- looking --------------------------------------------------------------------------------------


@pytest.mark.core
def test_what_a_call_does_is_read_without_a_trace_in_the_layer():
    layer = own.Scaled()
    x = keras.Input((4, 6))
    layer(x)
    before = dict(vars(layer))
    opened = open_call(layer, (x,), {})
    kinds = [type(n.operation).__name__ for n in opened.graph.nodes]
    assert kinds[0] == "Multiply" and kinds[-1] == "Matmul" and "Transpose" in kinds
    assert {v.name for _, v in opened.parameters} == {"gamma", "places", "pair0", "pair1", "w"}
    assert vars(layer) == before and len(layer._inbound_nodes) == 1


def test_a_function_as_activation_acts_by_number_if_all_that_it_does_does():
    def gate(x):
        return ops.sigmoid(1.7 * x) * x

    def centred(x):
        return x - ops.mean(x, axis=-1, keepdims=True)

    for function, frozen in ((gate, False), (centred, True)):
        model = around(L.Dense(5, activation=function, name="mine"))
        assert ridurre.DependencyGraph(model).removable("mine").any() != frozen
