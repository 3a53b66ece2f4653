"""Sizes and costs, against numbers worked out by hand."""

import time

import keras
import numpy as np
import pytest
from builders import L, chain, residual

import ridurre
from ridurre import measure
from ridurre.errors import ModelError, RequestError
from ridurre.testing import snapshot


def of(layer, *shape):
    """Complexity of a model that is a single layer."""
    inputs = keras.Input(shape)
    return ridurre.model_complexity(keras.Model(inputs, layer(inputs)))


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


# --- one layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "parameters", "macs", "filters", "outputs"),
    [
        # out: ceil(7/2) × 8
        (
            lambda: L.Conv2D(5, (3, 2), strides=(2, 1), padding="same"),
            (7, 8, 3),
            3 * 2 * 3 * 5 + 5,
            4 * 8 * (3 * 2 * 3 * 5),
            5,
            4 * 8 * 5,
        ),
        # a kernel of 3 with holes is 5 wide
        (lambda: L.Conv2D(5, 3, dilation_rate=2), (7, 8, 3), 140, 3 * 4 * 135, 5, 3 * 4 * 5),
        (lambda: L.Conv2D(5, 3, strides=2), (7, 8, 3), 140, 3 * 3 * 135, 5, 3 * 3 * 5),
        (lambda: L.Conv2D(5, 3, use_bias=False), (7, 8, 3), 135, 5 * 6 * 135, 5, 5 * 6 * 5),
        (
            lambda: L.Conv2D(5, 3, data_format="channels_first"),
            (3, 7, 8),
            140,
            5 * 6 * 135,
            5,
            5 * 6 * 5,
        ),
        # three groups: every filter reads 3 of the 9 channels
        (
            lambda: L.Conv2D(6, 3, groups=3),
            (5, 5, 9),
            3 * 3 * 3 * 6 + 6,
            3 * 3 * (3 * 3 * 3 * 6),
            6,
            3 * 3 * 6,
        ),
        (lambda: L.Conv1D(5, 3, padding="causal"), (7, 3), 50, 7 * 45, 5, 7 * 5),
        (
            lambda: L.Conv3D(5, (1, 2, 3)),
            (4, 5, 6, 3),
            95,
            4 * 4 * 4 * (1 * 2 * 3 * 3 * 5),
            5,
            4 * 4 * 4 * 5,
        ),
        (
            lambda: L.DepthwiseConv2D(3, depth_multiplier=2),
            (5, 5, 3),
            3 * 3 * 3 * 2 + 6,
            3 * 3 * (3 * 3 * 3 * 2),
            0,
            3 * 3 * 6,
        ),
        (lambda: L.DepthwiseConv1D(3), (5, 3), 12, 3 * 9, 0, 3 * 3),
        (
            lambda: L.SeparableConv2D(7, 3, depth_multiplier=2),
            (5, 5, 3),
            3 * 3 * 3 * 2 + 6 * 7 + 7,
            3 * 3 * (3 * 3 * 3 * 2 + 6 * 7),
            7,
            3 * 3 * 7,
        ),
        (lambda: L.SeparableConv1D(7, 3), (5, 3), 9 + 21 + 7, 3 * (9 + 21), 7, 3 * 7),
        # every input position is multiplied with the whole kernel
        (
            lambda: L.Conv2DTranspose(5, 3, strides=2),
            (4, 6, 3),
            3 * 3 * 5 * 3 + 5,
            4 * 6 * (3 * 3 * 5 * 3),
            5,
            9 * 13 * 5,
        ),
        (lambda: L.Conv1DTranspose(5, 2), (4, 3), 35, 4 * 30, 5, 5 * 5),
        (lambda: L.Dense(2), (7,), 16, 14, 0, 2),
        (lambda: L.Dense(2), (3, 5, 7), 16, 3 * 5 * 14, 0, 3 * 5 * 2),
        (L.BatchNormalization, (4, 5), 10, 0, 0, 20),
        (lambda: L.BatchNormalization(scale=False), (4, 5), 5, 0, 0, 20),
        (L.LayerNormalization, (4, 5), 10, 0, 0, 20),
        (lambda: L.PReLU(shared_axes=[1]), (4, 5), 5, 0, 0, 20),
        (lambda: L.MaxPooling1D(2), (4, 5), 0, 0, 0, 10),
        (L.GlobalAveragePooling1D, (4, 5), 0, 0, 0, 5),
        (lambda: L.Dropout(0.5), (4, 5), 0, 0, 0, 20),
    ],
)
def test_one_layer(layer, shape, parameters, macs, filters, outputs):
    size = of(layer(), *shape)
    assert size.parameters == parameters
    assert size.macs == macs
    assert size.filters == filters
    assert size.activation_memory == 4 * outputs


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.LSTM(5),
        lambda: L.Bidirectional(L.GRU(5)),
        lambda: L.TimeDistributed(L.Dense(5)),
        lambda: L.MultiHeadAttention(2, 3),
        lambda: L.SpectralNormalization(L.Dense(5)),
    ],
    ids=["lstm", "bidirectional", "time distributed", "attention", "spectral"],
)
def test_layers_inside_layers_have_parameters_too(layer):
    inputs = keras.Input((4, 3))
    layer = layer()
    x = layer(inputs, inputs) if isinstance(layer, L.MultiHeadAttention) else layer(inputs)
    model = keras.Model(inputs, x)
    assert ridurre.model_complexity(model).parameters == trainable(model) > 0


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("float16", 2), ("mixed_float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8)],
)
def test_memory_goes_by_the_precision(dtype, width):
    assert of(L.Conv2D(5, 1, dtype=dtype), 2, 3, 3).activation_memory == width * 2 * 3 * 5


# --- whole models ---------------------------------------------------------------------------------


def test_a_chain_of_layers():
    size = ridurre.model_complexity(chain())
    assert size.parameters == (27 * 5 + 5) + 2 * 5 + (45 * 7 + 7) + (7 * 2 + 2)
    assert size.macs == 4 * 6 * 27 * 5 + 2 * 4 * 45 * 7 + 14
    assert size.filters == 12
    # a, bn and relu: 4 × 6 × 5; b: 2 × 4 × 7; pool: 7; head: 2
    assert size.activation_memory == 4 * (3 * 120 + 56 + 7 + 2)
    assert [x.name for x in size.layers] == ["a", "bn", "relu", "b", "pool", "head"]
    assert [x.kind for x in size.layers][:2] == ["Conv2D", "BatchNormalization"]
    assert [x.macs for x in size.layers] == [3240, 0, 0, 2520, 0, 14]


def test_parameters_are_keras_trainable_ones():
    for model in (chain(), residual()):
        assert ridurre.model_complexity(model).parameters == trainable(model)
        count = trainable(model)
        model.trainable = False
        assert ridurre.model_complexity(model).parameters == count
        assert sum(x.parameters for x in ridurre.model_complexity(model).layers) == count


def test_a_shared_layer_is_stored_once_and_runs_twice():
    shared, conv = L.Dense(3, name="shared"), L.Conv1D(3, 1, name="conv")
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, conv(conv(shared(shared(inputs)))))
    size = ridurre.model_complexity(model)
    assert size.parameters == 12 + 12
    assert size.macs == 2 * (4 * 9) + 2 * (4 * 9)
    assert size.filters == 3
    assert [x.parameters for x in size.layers] == [12, 0, 12, 0]
    assert [x.filters for x in size.layers] == [0, 0, 3, 0]


def test_nested_models_are_counted_inside():
    block = keras.Sequential([keras.Input((4, 3)), L.Conv1D(3, 1, name="conv")], name="block")
    inputs = keras.Input((4, 3))
    size = ridurre.model_complexity(keras.Model(inputs, block(block(inputs))))
    assert [x.name for x in size.layers] == ["block/conv", "block/conv"]
    assert (size.parameters, size.macs, size.filters) == (12, 2 * 36, 3)


def test_operations_without_weights_cost_memory_only():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, keras.ops.concatenate([inputs, inputs * 2], axis=-1))
    size = ridurre.model_complexity(model)
    assert (size.parameters, size.macs, size.filters) == (0, 0, 0)
    assert size.activation_memory == 4 * (12 + 24)


def test_several_outputs_are_all_stored():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, keras.ops.split(inputs, [2], axis=-1))
    assert ridurre.model_complexity(model).activation_memory == 4 * 24


def test_a_published_figure():
    """MobileNet, the usual one: 569 million multiply-adds (Howard et al., 2017, table 4)."""
    size = ridurre.model_complexity(keras.applications.MobileNet(weights=None))
    assert size.macs == 568_740_352
    assert size.parameters == 4_231_976


# --- open sizes -----------------------------------------------------------------------------------


def open_model():
    inputs = keras.Input((None, None, 3))
    x = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(5, 3, name="a")(inputs))
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def test_open_sizes_have_no_cost():
    size = ridurre.model_complexity(open_model())
    assert (size.parameters, size.filters) == (140 + 12, 5)
    assert size.macs is None
    assert size.activation_memory is None
    assert all(x.macs is None and x.activation_memory is None for x in size.layers)


@pytest.mark.parametrize("sequential", [False, True])
def test_an_input_shape_settles_them(sequential):
    model = open_model()
    if sequential:
        model = keras.Sequential([keras.Input((None, None, 3)), *model.layers[1:]])
    before = snapshot(model)
    size = ridurre.model_complexity(model, input_shape=(6, 8, 3))
    assert size.macs == 4 * 6 * 135 + 10
    assert size.activation_memory == 4 * (4 * 6 * 5 + 5 + 2)
    assert (size.parameters, size.filters) == (152, 5)
    assert snapshot(model) == before


def test_an_input_shape_outranks_the_models_own():
    assert ridurre.model_complexity(chain(), input_shape=(5, 5, 3)).macs == 9 * 135 + 315 + 14


def test_an_input_shape_works_with_a_lambda():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.Lambda(lambda x: 2 * x)(L.Conv1D(5, 1)(inputs)))
    assert ridurre.model_complexity(model, input_shape=(4, 3)).macs == 4 * 15


@pytest.mark.parametrize("shape", [(6, 8, 4), (6, 8), (2, 2, 3), 7, ("a", 8, 3)], ids=repr)
def test_an_input_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(RequestError, match=r"input_shape.*Received: "):
        ridurre.model_complexity(open_model(), input_shape=shape)


def test_an_input_shape_is_for_one_input():
    inputs = [keras.Input((None, 3)), keras.Input((None, 3))]
    model = keras.Model(inputs, L.Add()(inputs))
    with pytest.raises(RequestError, match=r"describes one input; the model has 2. Received: \(4,"):
        ridurre.model_complexity(model, input_shape=(4, 3))


# --- as text --------------------------------------------------------------------------------------


def test_the_table():
    inputs = keras.Input((20, 30, 3))
    x = L.Conv2D(7, 3, name="conv")(inputs)
    size = ridurre.model_complexity(keras.Model(inputs, L.Flatten(name="flat")(x)))
    assert size.table().splitlines() == [
        "layer  type     parameters    MACs  filters  activation bytes  sparsity",
        "conv   Conv2D          196  95,256        7            14,112      3.6%",  # the biases
        "flat   Flatten           0       0        0            14,112      0.0%",
        "total                  196  95,256        7            28,224      3.6%",
    ]
    assert str(size) == "196 parameters, 95,256 MACs, 7 filters, 28,224 bytes of activations"


def test_unknown_figures_are_question_marks():
    size = ridurre.model_complexity(open_model())
    assert size.table().splitlines()[-1].split() == ["total", "152", "?", "5", "?", "4.6%"]
    assert str(size) == "152 parameters, ? MACs, 5 filters, ? bytes of activations"


def test_the_record_is_frozen():
    size = ridurre.model_complexity(chain())
    with pytest.raises(AttributeError):
        size.macs = 0
    assert size == ridurre.model_complexity(chain())


# --- zeros ----------------------------------------------------------------------------------------


def test_zeros_are_counted_by_layer_and_in_macs():
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(5, 3, use_bias=False, name="conv")(inputs)
    x = L.Dense(2, use_bias=False, name="dense")(L.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    kernel = np.ones((3, 3, 3, 5), "float32")
    kernel[0] = 0
    model.get_layer("conv").set_weights([kernel])
    size = ridurre.model_complexity(model)
    by_layer = {x.name: x for x in size.layers}
    assert by_layer["conv"].nonzero == 90
    assert by_layer["conv"].sparsity == pytest.approx(1 / 3)
    assert by_layer["conv"].nonzero_macs == 4 * 90
    assert by_layer["dense"].sparsity == 0
    assert (size.nonzero, size.nonzero_macs) == (100, 4 * 90 + 10)
    assert size.sparsity == pytest.approx(45 / 145)


def test_the_zipped_size_shrinks_with_zeros_and_the_file_does_not():
    model = keras.Sequential([keras.Input((100,)), L.Dense(200)])
    assert ridurre.model_complexity(model).zipped_size is None
    sparse = ridurre.prune(ridurre.LevelPrune(0.9), model)
    before, after = (ridurre.model_complexity(m, zipped=True).zipped_size for m in (model, sparse))
    assert after < 0.35 * before
    whole, part = (ridurre.FileSize(1.0).measure(m) for m in (model, sparse))
    assert whole == pytest.approx(part, rel=0.01)  # names of layers are numbered


@pytest.mark.parametrize("size", [measure.file_size, measure.zipped_size])
def test_an_optimizer_does_not_count_in_files(size):
    model = keras.Sequential([keras.Input((100,)), L.Dense(200)])
    alone = size(model)
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((2, 100)), np.ones((2, 200)))
    assert size(model) == pytest.approx(alone, abs=2000)  # what it is compiled with is a text


# --- latency --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (chain, {}),
        (chain, {"batch_size": 3}),
        (open_model, {"input_shape": (6, 8, 3)}),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]), {}),
    ],
)
def test_latency_is_measured_in_seconds(build, options):
    model = build()
    before = snapshot(model)
    seconds = ridurre.measure_latency(model, repeats=2, warmup=1, **options)
    assert isinstance(seconds, float)
    assert 0 < seconds < 5
    assert snapshot(model) == before


def test_latency_is_the_median_after_warming_up(monkeypatch):
    shapes = []

    def predict(x):
        shapes.append(x.shape)
        time.sleep(0.5 if len(shapes) in (2, 5) else 0.002)  # a warm-up and one outlier

    monkeypatch.setattr(measure, "run_compiled", lambda model: predict)
    seconds = ridurre.measure_latency(chain(), batch_size=4, repeats=5, warmup=2)
    assert shapes == [(4, 6, 8, 3)] * 7
    assert 0.002 <= seconds < 0.08  # the mean is above 0.1


@pytest.mark.parametrize("options", [{"repeats": 0}, {"batch_size": 0}, {"repeats": -1}], ids=repr)
def test_latency_needs_positive_numbers(options):
    with pytest.raises(RequestError, match="Expected positive numbers. Received: repeats="):
        ridurre.measure_latency(chain(), **options)


def test_latency_needs_to_know_the_size():
    with pytest.raises(RequestError, match="input_shape"):
        ridurre.measure_latency(open_model(), repeats=1)


@pytest.mark.parametrize("measured", [ridurre.model_complexity, ridurre.measure_latency])
@pytest.mark.parametrize(
    "wrong", [None, "model.keras", L.Dense(2), chain], ids=lambda x: type(x).__name__
)
def test_only_models_are_measured(measured, wrong):
    with pytest.raises(TypeError, match=r"Expected a Keras 3 model .*Received: "):
        measured(wrong)


@pytest.mark.parametrize("measured", [ridurre.model_complexity, ridurre.measure_latency])
def test_unbuilt_models_are_refused(measured):
    with pytest.raises(ModelError, match="'new' is not built"):
        measured(keras.Sequential([L.Dense(2)], name="new"))
