"""Try an installed ridurre: `python .ci/smoke.py ENVIRONMENT ARCHIVE` (see .ci/package)."""

import importlib.metadata
import sys
import tarfile
from pathlib import Path

import keras

import ridurre


def check_origin(environment: Path) -> None:
    """The package is the environment's, with its data files."""
    here = Path(ridurre.__file__)
    assert here.is_relative_to(environment), f"{here} is not in {environment}"
    assert importlib.metadata.version("ridurre") == ridurre.__version__
    for name in ("py.typed", "reports/page.html", "reports/page.js", "reports/page.css"):
        assert (here.parent / name).is_file(), f"the wheel lacks {name}"


def check_source(archive: Path) -> None:
    """Whoever has the source distribution can build from it, and read the licence."""
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"setup.py", "requirements.txt", "README.md", "LICENSE", "ridurre/reports/page.html"}
    assert needed <= names, f"the source distribution lacks {needed - names}"


def check_pruning() -> None:
    """A network loses half of its work, exactly, and is saved."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(7, 3, activation="relu")(inputs)
    x = layers.Add()([x, layers.Conv2D(7, 3, padding="same")(x)])
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    strategy = ridurre.ChannelPrune(target=ridurre.MACs(0.5))
    small, plan = strategy.run(model)
    ridurre.verify(model, small, plan)
    assert ridurre.model_complexity(small).macs <= 0.5 * ridurre.model_complexity(model).macs
    small.save("small.keras")


if __name__ == "__main__":
    check_origin(Path(sys.argv[1]))
    check_source(Path(sys.argv[2]))
    check_pruning()
    print("the installed package works")
