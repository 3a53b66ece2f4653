"""ridurre next to tensorflow-model-optimization: magnitude pruning of weights while training.

    python benchmarks/tfmot.py --data /usr/share/datasets/fashion-mnist

makes a virtual environment with Keras 2 (tf_keras) at first. Both tools start from the same trained
weights of the same small network (benchmarks/small_net.py), and train it on with the same data,
optimizer, batches, epochs and schedule: cubic from 0 to the level over three quarters of the steps,
every 100 steps, kernels only, the same level in every layer. They take turns.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import numpy as np
import small_net
from common import HERE, here_and_now, other_python, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre

PACKAGES = ("tensorflow", "tf_keras", "tensorflow-model-optimization")


def prune_while_training(model: Any, data: small_net.Data, level: float, epochs: int) -> Any:
    steps = epochs * -(-len(data.x) // 128)
    pruning = ridurre.PruneDuringTraining(
        ridurre.LevelPrune(level), schedule="cubic", end=int(0.75 * steps), every=100, unit="step"
    )
    small_net.compile_model(keras, model)
    model.fit(data.x, data.y, batch_size=128, epochs=epochs, verbose=0, callbacks=[pruning, *CLOCK])
    return model


CLOCK: list[Any] = []


def by_ridurre(weights: Path, level: float, options: Any, seed: int) -> dict[str, Any]:
    data, model = small_net.load(options.data), small_net.build(keras)
    with np.load(weights) as file:
        model.set_weights([file[f"arr_{i}"] for i in range(len(file.files))])
    keras.utils.set_random_seed(seed)
    CLOCK[:] = [small_net.clock(keras)]
    if level:
        model = prune_while_training(model, data, level, options.epochs)
    else:
        small_net.compile_model(keras, model)
        model.fit(data.x, data.y, batch_size=128, epochs=options.epochs, verbose=0, callbacks=CLOCK)
    return {
        "accuracy": small_net.accuracy(model, data),
        "sparsity": small_net.sparsity(model),
        "seconds": CLOCK[0].seconds,
    }


def by_tfmot(weights: Path, level: float, options: Any, seed: int) -> dict[str, Any]:
    settings = {
        "weights": str(weights), "level": level, "epochs": options.epochs, "seed": seed,
        "data": str(options.data),
    }  # fmt: skip
    python = other_python(options.env, PACKAGES, "tensorflow_model_optimization")
    command = [str(python), str(HERE / "tfmot_worker.py"), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def lines_of(source: str) -> int:
    """Lines of code that a user writes: no blank ones, no comments."""
    stripped = (line.strip() for line in source.splitlines())
    return sum(1 for line in stripped if line and not line.startswith("#"))


def user_lines() -> dict[str, int]:
    text = (HERE / "tfmot_worker.py").read_text("utf-8")
    theirs = text.split("from here …\n")[1].split("# … to here")[0]
    return {"ridurre": lines_of(inspect.getsource(prune_while_training)), "tfmot": lines_of(theirs)}


def trained(options: Any, seed: int, folder: Path) -> Path:
    """The weights that both tools start from."""
    data, model = small_net.load(options.data), small_net.build(keras)
    keras.utils.set_random_seed(seed)
    small_net.compile_model(keras, model)
    model.fit(data.x, data.y, batch_size=128, epochs=options.train_epochs, verbose=0)
    say(f"seed {seed}: trained, {small_net.accuracy(model, data):.2f} %")
    path = folder / f"{seed}.npz"
    np.savez(path, *model.get_weights())
    return path


def row(name: str, level: float, runs: list[dict[str, Any]], lines: dict[str, int]) -> list[Any]:
    accuracy = [r["accuracy"] for r in runs]
    seconds = [s for r in runs for s in r["seconds"][1:]]  # the first one compiles
    return [
        name,
        f"{level:.0%}",
        f"{mean(r['sparsity'] for r in runs):.4%}",
        f"{mean(accuracy):.2f} ± {pstdev(accuracy):.2f}",
        f"{median(seconds):.1f} ({min(seconds):.1f})",
        lines.get(name, ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.8, 0.95])
    parser.add_argument("--train-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "ridurre-tfmot")
    options = parser.parse_args()
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            weights = trained(options, seed, Path(folder))
            runs: list[tuple[str, float, Any]] = [("no pruning", 0.0, by_ridurre)]
            for level in options.levels:
                runs += [("ridurre", level, by_ridurre), ("tfmot", level, by_tfmot)]
            for name, level, run in runs:
                found.setdefault((name, level), []).append(run(weights, level, options, seed))
                last = found[name, level][-1]
                say(f"{name}, {level:.0%}, seed {seed}: {last['accuracy']:.2f} %")
    lines = user_lines()
    rows = [row(*key, runs, lines) for key, runs in found.items()]
    head = ["", "level", "zeros in kernels", "accuracy %", "seconds per epoch", "lines of code"]
    results = table(head, rows)
    print(results)
    write(
        "tfmot",
        "ridurre next to tensorflow-model-optimization, on Fashion-MNIST",
        here_and_now(),
        " ".join(__doc__.split("\n\n")[2].split())
        + f" {options.train_epochs} epochs before, {options.epochs} of pruning; accuracy of "
        f"the last epoch, mean ± standard deviation over the seeds {options.seeds}; seconds are "
        "the median of all epochs but the first of each run (the fastest one in brackets). "
        "*no pruning*: the same training, without masks, in Keras 3.",
        results,
    )


if __name__ == "__main__":
    main()
