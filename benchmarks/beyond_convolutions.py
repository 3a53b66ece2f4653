"""A ViT, LSTMs and a Conv1D with GRU, trained, pruned to half their MACs and fine-tuned.

    python benchmarks/beyond_convolutions.py --images /usr/share/datasets/fashion-mnist
    python benchmarks/beyond_convolutions.py --images /tmp/cifar10.npz --tasks vit
    python benchmarks/beyond_convolutions.py --tasks lstm gru --seeds 0 1 2 --resume

The tasks stand in sequence_tasks.py. Scoring, repair and training read training samples only; test
samples are read for the figures alone, and choose nothing. The page of results is written anew
after every row; with ``--resume``, rows that are in results/beyond_convolutions.json are not run
again, nor is a network trained whose weights an earlier run has left in ``--kept``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
from common import RESULTS, here_and_now, say, table, write

import keras  # isort: skip - `common` quietens it
from sequence_tasks import TASKS, Data, Task, accuracy, compile_model, some, train

import ridurre

METHODS = {
    "unpruned": "the whole network, trained on for as long",
    "random": "random units",
    "l1": "L1 norms of all weights of a unit",
    "gate_taylor": "squared gate Taylor of the loss",
    "wifv": "variance of the activations times the weights that read them",
}
REPAIRS = ("mean", "least_squares")
#: By task and method, and seed: accuracies, MACs and parameters; see `one_row`.
Found = dict[str, dict[str, dict[str, float]]]


def whole(name: str, data: Data, options: Any, seed: int) -> keras.Model:
    """The trained network of a task."""
    task = TASKS[name]
    keras.utils.set_random_seed(seed)
    model = task.build(data)
    kind = options.images.stem if name == "vit" else "own"
    epochs = options.epochs or task.epochs
    kept = options.kept / f"{name}_{kind}_{len(data.x)}_{epochs}_{seed}.weights.h5"
    if options.resume and kept.exists():
        model.load_weights(kept)
    else:
        train(model, data, epochs, task.rate, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(kept)
    compile_model(model)
    return model


def copy_of(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def pruned(
    model: keras.Model, method: str, data: Data, options: Any, seed: int
) -> dict[str, keras.Model]:
    """The model at half of its MACs: as it is ("raw") and after each repair."""
    if method == "unpruned":
        return {"raw": copy_of(model)}
    order = np.random.default_rng(seed).permutation(len(data.x))[: options.calibration]
    x, y = data.x[order], data.y[order]
    strategy = ridurre.ChannelPrune(
        target=ridurre.MACs(0.5), criterion=method, scope="isomorphic", data=(x, y), seed=seed
    )
    raw, plan = strategy.run(model)
    found = {"raw": raw}
    for how in REPAIRS:
        found[how] = ridurre.recover(raw, model, plan, x, how, samples=None, seed=seed)
    return found


def one_row(
    model: keras.Model, task: Task, method: str, data: Data, options: Any, seed: int
) -> dict[str, float]:
    """Accuracy before, right after pruning, repaired and fine-tuned, with MACs and parameters."""
    start = time.perf_counter()
    found = pruned(model, method, data, options, seed)
    seconds = time.perf_counter() - start
    row = {how: accuracy(m, data.x_test, data.y_test) for how, m in found.items()}
    last = list(found.values())[-1]
    epochs = options.finetune_epochs or task.finetune_epochs
    train(last, data, epochs, task.rate / 2, seed + 1000)
    row["tuned"] = accuracy(last, data.x_test, data.y_test)
    cost = ridurre.model_complexity(last)
    return row | {"macs": cost.macs, "parameters": cost.parameters, "seconds": seconds}


def spread(values: list[float]) -> str:
    text = f"{mean(values):.2f}"
    return f"{text} ± {pstdev(values):.2f}" if len(values) > 1 else text


def line(method: str, runs: dict[str, dict[str, float]]) -> list[Any]:
    """One line of a table."""
    columns = ["raw", *REPAIRS, "tuned"]
    values = [[run[c] for run in runs.values() if c in run] for c in columns]
    macs, parameters = (mean(run[c] for run in runs.values()) for c in ("macs", "parameters"))
    return [
        method,
        *(spread(v) if v else "" for v in values),
        f"{macs / 1e6:.2f}",
        f"{parameters / 1e3:.1f}",
        " ".join(sorted(runs)),
    ]


def section(task: str, data: str, found: Found) -> str:
    """The heading and the table of a task."""
    head = ("criterion", "pruned", "means repaired", "least squares", "then fine-tuned",
            "MACs [million]", "parameters [thousand]", "seeds")  # fmt: skip
    names = [m for m in METHODS if f"{task}|{data}|{m}" in found]
    rows = [line(m, found[f"{task}|{data}|{m}"]) for m in names]
    return f"## {TASKS[task].title}\n\n{data}\n\n{table(head, rows)}"


def page(found: Found, options: Any) -> None:
    """Write the tables of all that was found so far."""
    (RESULTS / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    kinds = dict.fromkeys(tuple(key.split("|")[:2]) for key in found)
    write(
        options.name,
        "Beyond convolutions",
        here_and_now(),
        "Percent of the test samples' labels that are told right: mean ± standard deviation over "
        "the seeds, which choose first weights, order and calibration samples. Pruned to half of "
        'the MACs in one step, `ChannelPrune(target=MACs(0.5), scope="isomorphic")`: the same '
        "fraction of every kind of unit (a ViT's heads, head sizes, MLP widths and embedding "
        "width; embedding, filters and units of the others, where every kind has one group), "
        f"scored and repaired with {options.calibration} training samples. The model that least "
        "squares repaired is fine-tuned. Adam, batches of 64, learning rate linearly to zero, half "
        "as high for fine-tuning; the last epoch counts.",
        *(section(*kind, found) for kind in sorted(kinds)),
        "\n".join(f"- *{name}*: {text}" for name, text in METHODS.items()),
    )


def describe(name: str, data: Data, options: Any) -> str:
    """Which data, and how long they are learned."""
    task = TASKS[name]
    where = {"vit": "Fashion-MNIST" if options.images.is_dir() else "CIFAR-10"}.get(name, "")
    epochs, more = options.epochs or task.epochs, options.finetune_epochs or task.finetune_epochs
    return (
        f"{where + ': ' if where else ''}{len(data.x)} training and {len(data.x_test)} test "
        f"samples, {epochs} epochs, {more} of fine-tuning."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--train-limit", type=int, default=None, help="training samples used")
    parser.add_argument("--calibration", type=int, default=512, help="samples to score and repair")
    parser.add_argument("--epochs", type=int, help="of the first training; each task's own if none")
    parser.add_argument("--finetune-epochs", type=int)
    parser.add_argument("--kept", type=Path, default=Path.home() / ".cache" / "ridurre-beyond")
    parser.add_argument("--resume", action="store_true", help="add to what was found before")
    parser.add_argument("--name", default="beyond_convolutions", help="of the page of results")
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    found: Found = json.loads(path.read_text()) if options.resume and path.exists() else {}
    for seed in options.seeds:
        for name in options.tasks:
            data = some(TASKS[name].load(options.images), options.train_limit)
            keys = {m: f"{name}|{describe(name, data, options)}|{m}" for m in options.methods}
            missing = [m for m, key in keys.items() if str(seed) not in found.get(key, {})]
            model = whole(name, data, options, seed) if missing else None
            for method in missing:
                row = one_row(model, TASKS[name], method, data, options, seed)
                say(f"{name}, seed {seed}, {method}: {row}")
                found.setdefault(keys[method], {})[str(seed)] = row
                page(found, options)
    page(found, options)


if __name__ == "__main__":
    main()
