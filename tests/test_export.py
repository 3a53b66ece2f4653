"""Exported files are run and held against the model; nothing that fails the check is left."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from builders import chain, residual

import ridurre
from ridurre import runtimes
from ridurre.data import random_inputs
from ridurre.errors import NotAModelError, RequestError, VerificationError
from ridurre.runtimes import Runtime, in_order, named_inputs

L = keras.layers

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="not every format comes from every back end"
)

NAMES = {"tf_saved_model": "model", "onnx": "m.onnx", "openvino": "m.xml", "litert": "m.tflite"}
#: What Keras needs to write a format, and what runs it.
NEEDED = {
    "tf_saved_model": ["tensorflow"],
    "onnx": ["onnx", "tf2onnx", "onnxruntime"],
    "openvino": ["openvino"],
    "litert": ["ai_edge_litert"],
}


@pytest.fixture(params=NAMES)
def format(request: pytest.FixtureRequest) -> str:
    for package in NEEDED[request.param]:
        pytest.importorskip(package, reason="runtimes are optional")
    return str(request.param)


def several() -> keras.Model:
    """Three inputs that are not in the order of their names, thirteen outputs of unequal sizes."""
    a, b = keras.Input((6,), name="zeta"), keras.Input((3,), name="alpha")
    c = keras.Input((4,), name="numbers", dtype="int32")
    x = L.Concatenate()([a, b, L.Flatten()(L.Embedding(5, 3)(c))])
    return keras.Model([a, b, c], [L.Dense(n)(x) for n in range(2, 15)])


def by_keys() -> keras.Model:
    """Dictionaries in and out, and two outputs of the same size."""
    a, b = keras.Input((5,), name="zeta"), keras.Input((3,), name="alpha")
    x = L.Concatenate()([a, b])
    outputs = {"output_10": L.Dense(7)(x), "output_2": L.Dense(7)(x), "B": L.Dense(2)(x)}
    return keras.Model({"zeta": a, "alpha": b}, outputs)


@keras.saving.register_keras_serializable("tests")
class Plain(keras.Model):
    """A subclass whose call knows nothing of training."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = L.Dense(5)

    def call(self, x: Any) -> Any:
        return {"b": self.dense(x), "a": 2 * self.dense(x)}


def subclassed() -> keras.Model:
    model = Plain()
    model(np.zeros((2, 3), "float32"))
    return model


def pruned() -> keras.Model:
    """Never called, as a model comes from surgery."""
    return ridurre.prune(ridurre.ChannelPrune(0.4), residual())


@pytest.mark.parametrize("build", [pruned, several, by_keys, subclassed], ids=lambda f: f.__name__)
def test_the_file_computes_what_the_model_computes(
    build: Callable[[], keras.Model], format: str, tmp_path: Path
) -> None:
    inputs = np.ones((2, 3), "float32") if build is subclassed else None
    difference = ridurre.export(build(), tmp_path / "new" / NAMES[format], inputs=inputs)
    assert difference is not None
    assert 0 <= difference < 1e-5
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert left == {NAMES[format]} | ({"m.bin"} if format == "openvino" else set())


def test_another_model_than_that_of_the_file_is_noticed(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is really run: a converter that loses a bias is caught."""
    model = chain()
    model.get_layer("head").bias.assign([0.5, -0.25])
    whole = keras.Model.export

    def loses_a_bias(self: keras.Model, *args: Any, **kwargs: Any) -> None:
        broken = keras.models.clone_model(self)
        broken.set_weights([*self.get_weights()[:-1], np.zeros(2)])
        broken(random_inputs(broken))
        whole(broken, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "export", loses_a_bias)
    with pytest.raises(VerificationError, match=r"differs .* by \d.* allowed is 0.0001"):
        ridurre.export(model, tmp_path / NAMES[format])
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    expected = np.asarray(model(random_inputs(model)))
    wrong = expected + 0.5 * np.abs(expected).max() * np.array([1, 0])
    fake(monkeypatch, "onnx", lambda *_: [(["y"], wrong)])
    assert ridurre.export(model, tmp_path / "m.onnx", tolerance=0.51) == pytest.approx(0.5)
    with pytest.raises(VerificationError, match="by 0.5 of the largest output; allowed is 0.49"):
        ridurre.export(model, tmp_path / "n.onnx", tolerance=0.49)


# --- what stands at the path ---


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "model"
    ridurre.export(chain(), path)
    before = (path / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(RequestError, match="exists and is not overwritten.*overwrite=True"):
        ridurre.export(residual(), path)
    assert (path / "saved_model.pb").stat().st_mtime_ns == before
    ridurre.export(residual(), path, overwrite=True)
    assert (path / "saved_model.pb").stat().st_mtime_ns > before


def test_the_weights_of_another_model_stay(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_text("somebody's")
    with pytest.raises(RequestError, match=r"m\.bin exists"):
        ridurre.export(chain(), tmp_path / "m.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["m.bin"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(RequestError, match="no SavedModel"):
        ridurre.export(chain(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter").read_text() == "dear"


def test_what_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("older")
    fake(monkeypatch, "onnx", lambda *_: [(["y"], np.ones((2, 2)))])
    with pytest.raises(VerificationError, match="by inf|by \\d"):
        ridurre.export(chain(), path, overwrite=True)
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


# --- what goes wrong ---


def fake(monkeypatch: pytest.MonkeyPatch, format: str, run: Callable[..., Any]) -> None:
    """A runtime that needs no package, and a converter that writes a word."""
    old = runtimes.RUNTIMES[format]
    monkeypatch.setitem(
        runtimes.RUNTIMES, format, Runtime(old.title, "numpy", old.ending, run, old.parts)
    )
    monkeypatch.setattr(
        keras.Model, "export", lambda self, path, **options: Path(path).write_text("new")
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([(["y"], np.ones((2, 3)))], r"expected \(2, 2\), received \(2, 3\)"),
        ([(["y"], np.full((2, 2), np.nan))], "exported ONNX file are not finite"),
        ([], "Keras model has 1 outputs, the exported ONNX file 0"),
    ],
)
def test_outputs_that_cannot_be_right(
    outputs: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "onnx", lambda *_: outputs)
    with pytest.raises(VerificationError, match=message):
        ridurre.export(chain(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("unknown operator Foo")

    fake(monkeypatch, "onnx", refuses)
    with pytest.raises(VerificationError, match=r"does not run .*unknown operator Foo"):
        ridurre.export(chain(), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("package", "name"),
    [("onnxruntime", "m.onnx"), ("openvino", "m.xml"), ("ai-edge-litert", "m.tflite")],
)
def test_a_missing_runtime_is_named(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = package.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.interpreter", None)
    with pytest.raises(RequestError, match=f"pip install {package}.*verify=False"):
        ridurre.export(chain(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_converter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RequestError, match="'openvino' on the back end .*pip install openvino"):
        ridurre.export(chain(), tmp_path / "m.xml", verify=False)


def test_without_a_check_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "onnx", lambda *_: 1 / 0)
    assert ridurre.export(chain(), tmp_path / "m.onnx", verify=False) is None
    assert (tmp_path / "m.onnx").read_text() == "new"


def test_options_go_to_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    fake(monkeypatch, "onnx", lambda *_: [])
    monkeypatch.setattr(keras.Model, "export", lambda self, path, **options: given.update(options))
    ridurre.export(chain(), tmp_path / "m.onnx", verify=False, opset_version=17)
    assert given == {"format": "onnx", "verbose": False, "opset_version": 17}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.tfilte", {}, r"'m.tfilte' names no format: .*\.tflite \(LiteRT\)"),
        ("m", {"format": "onx"}, "Received: 'onx'. Did you mean 'onnx'"),
    ],
)
def test_unknown_formats(name: str, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        ridurre.export(chain(), tmp_path / name, **options)


def test_only_models(tmp_path: Path) -> None:
    with pytest.raises(NotAModelError, match="Received: Dense"):
        ridurre.export(L.Dense(3), tmp_path / "m.onnx")


# --- order of inputs and outputs ---


def one(value: float) -> np.ndarray:
    return np.full((1, 2), value)


@pytest.mark.parametrize(
    ("names", "keys", "order"),
    [
        (["output_10", "output_2", "output_0"], (), [2, 1, 0]),
        (["Identity_1:0", "Identity:0", "Identity_2:0"], (), [1, 0, 2]),
        (["output_10", "output_2"], ("output_10", "output_2"), [0, 1]),  # a user's own keys
        (["b", "a"], (), [0, 1]),  # as in the file
        (["Identity", "other"], (), [0, 1]),
    ],
)
def test_outputs_come_in_the_order_of_the_model(
    names: list[str], keys: tuple[str, ...], order: list[int]
) -> None:
    outputs = [(["layer/" + name, name], one(i)) for i, name in enumerate(names)]
    assert [int(y[0, 0]) for y in in_order(outputs, keys)] == order


def test_inputs_are_told_by_name() -> None:
    def firsts(model: keras.Model, inputs: Any) -> dict[str, float]:
        return {n: float(x[0, 0]) for names, x in named_inputs(model, inputs) for n in names}

    order = {"zeta": 1, "alpha": 2, "numbers": 3}
    assert firsts(several(), [one(1), one(2), one(3)]) == order
    assert firsts(several(), {"alpha": one(2), "zeta": one(1), "numbers": one(3)}) == order
    assert firsts(subclassed(), {"b": one(1), "a": one(2)}) == {"a": 2, "b": 1}
    assert len(named_inputs(subclassed(), [one(1), one(2)])) == 2


def test_keys_that_are_not_the_names_of_the_tensors(tmp_path: Path) -> None:
    a, b = keras.Input((3,), name="zeta"), keras.Input((3,), name="alpha")
    with pytest.warns(UserWarning, match="must match the names"):
        model = keras.Model({"b": a, "z": b}, L.Dense(2)(a) + L.Dense(2)(b))
    assert ridurre.export(model, tmp_path / "model") < 1e-5
