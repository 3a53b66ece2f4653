"""Do fewer MACs make a model faster where it runs? LiteRT, ONNX Runtime and OpenVINO.

python benchmarks/deploy.py

makes an environment with the runtimes at first, and runs itself in it. Every model is pruned in
several ways and exported with `ridurre.export`, which holds each file against Keras; the files of
one runtime are then timed in a process of their own, in turns. What was measured before, of other
models or ways, stays in the tables.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import HERE, RESULTS, here_and_now, other_python, say, table, write

PACKAGES = ("onnxruntime", "openvino", "ai-edge-litert", "tf2onnx", "onnx")
MODELS = ["MobileNetV2", "ResNet50", "ResNet-20 (CIFAR)"]
#: Title, ending and whether it is quantised, by the name that `--runtimes` knows.
RUNTIMES = {
    "litert": ("LiteRT", ".tflite", False),
    "litert-int8": ("LiteRT int8", ".tflite", True),
    "onnx": ("ONNX Runtime", ".onnx", False),
    "openvino": ("OpenVINO", ".xml", False),
}
#: How a model is pruned: MACs that stay, and what widths are multiples of.
WAYS = {
    "whole": (1.0, 1),
    "0.5": (0.5, 1),
    "0.5, round_to=8": (0.5, 8),
    "0.25": (0.25, 1),
    "0.25, round_to=8": (0.25, 8),
}

#: What the page says before its tables.
ABOUT = (
    "Batch of one, 224×224 (CIFAR: 32×32), one thread, files with inputs of fixed size. "
    "MobileNetV2 and ResNet50 have random weights with batch-norm statistics of random images, "
    "before and after pruning: times do not depend on the values, and accuracy is no matter "
    "here. ResNet-20 has published weights. Pruned by L1, the same fraction of every group of "
    "channels, to a fraction of the MACs; *round_to=8*: widths that are multiples of 8, with at "
    "most as many MACs. Models may have been measured by several calls, with other `--models` and "
    "`--ways`; on top stands the last one.",
    "In a turn every file runs {runs} times on end (after one run that is not counted), and "
    "files take turns, at least {turns} of them. *ms*: CPU time of the process, median over the "
    "turns of the median in a turn; on one thread, that is the latency of a machine that does "
    "nothing else. *ms by the clock*: the same with waiting: this machine was busy, and "
    "whatever runs longer than a slice of the scheduler is interrupted, so that short runs look "
    "better than they are. *Speed-up*: CPU time whole / pruned, the median of the ratios of the "
    "same turn, with their quartiles. *MACs ratio*: MACs whole / MACs pruned. **Speed-up ÷ MACs "
    "ratio** is 1 where time falls as MACs do, below where it falls less. *Differs from Keras*: "
    "largest difference on random images relative to the largest output, as `ridurre.export` "
    "finds it; it would have refused a float32 file over 1e-4. *int8*: LiteRT's converter, "
    "calibrated on 8 random images; the model's inputs and outputs stay float32.",
)


# --- timing: a process of its own, which knows nothing of Keras -----------------------------------


def ready(file: Path, x: np.ndarray) -> Callable[[], Any]:
    """One prediction of the model in a file, on one thread."""
    if file.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        model = Interpreter(model_path=str(file), num_threads=1)
        model.allocate_tensors()
        model.set_tensor(model.get_input_details()[0]["index"], x)
        return model.invoke
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        return functools.partial(session.run, None, {session.get_inputs()[0].name: x})
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would compute in bfloat16
    }
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    return request.infer


class Spent(NamedTuple):
    """Milliseconds of a prediction."""

    cpu: float
    clock: float


def timed(files: list[Path], side: int, options: Any) -> list[list[Spent]]:
    """The medians of some predictions, for every file and turn.

    In a turn every model runs several times on end, as when it is used; the first of these, with
    the other models' weights in the caches, is not counted.
    """
    x = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype("float32")
    models = [ready(file, x) for file in files]
    found: list[list[Spent]] = [[] for _ in models]
    until = time.perf_counter() + options.seconds
    for turn in range(options.turns + 1):
        for model, times in zip(models, found, strict=True):
            spent = [_spent(model) for _ in range(options.runs + 1)][1:]
            if turn:
                times.append(Spent(*map(statistics.median, zip(*spent, strict=True))))
        if turn >= 10 and time.perf_counter() > until:
            break
    return found


def _spent(action: Callable[[], Any]) -> Spent:
    clock, cpu = time.perf_counter(), time.process_time()
    action()
    return Spent(1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - clock))


def timed_apart(files: list[Path], side: int, options: Any) -> list[list[Spent]]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--turns", str(options.turns), "--runs", str(options.runs)]
    command += ["--seconds", str(options.seconds), "--side", str(side), "--files", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return [[Spent(*x) for x in times] for times in json.loads(done.stdout.splitlines()[-1])]


# --- models ---------------------------------------------------------------------------------------


def whole_model(name: str) -> Any:
    """A model of random weights and settled statistics, or the ResNet-20 with published weights."""
    import keras
    import resnet_cifar

    keras.utils.set_random_seed(0)
    if name == "ResNet-20 (CIFAR)":
        return resnet_cifar.load(20)
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    return settled(model)


def settled(model: Any) -> Any:
    """Batch-norm statistics of random images, without which random layers fade to nothing."""
    import keras

    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [x.momentum for x in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images(model, 8, seed=1), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def images(model: Any, count: int, seed: int) -> np.ndarray:
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def smaller(model: Any, keep: float, round_to: int) -> Any:
    """The model with a fraction of its MACs; L1, the same fraction of every group of channels."""
    import ridurre

    if keep == 1:
        return model
    strategy = ridurre.ChannelPrune(target=ridurre.MACs(keep), round_to=round_to)
    return settled(ridurre.prune(strategy, model, verbose=0))


@dataclass
class Exported:
    """A file, and how its outputs differ from Keras'."""

    file: Path
    difference: float
    bytes: int


def exported(model: Any, file: Path, quantised: bool) -> Exported:
    import keras

    import ridurre

    x = images(model, 1, seed=2)
    signature = [keras.InputSpec(shape=x.shape, dtype="float32")]
    options: dict[str, Any] = {"inputs": x, "input_signature": signature, "verify": True}
    if quantised:
        import tensorflow as tf

        samples = images(model, 8, seed=1)
        options |= {
            "tolerance": np.inf,  # what is found stands in the table
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: ([s[None]] for s in samples),
        }
    difference = ridurre.export(model, file, **options)
    parts = [p for p in (file, file.with_suffix(".bin")) if p.exists()]
    return Exported(file, difference, sum(p.stat().st_size for p in parts))


# --- the tables -----------------------------------------------------------------------------------


def measured(name: str, options: Any) -> list[dict[str, Any]]:
    """A row for every runtime and way of pruning."""
    import ridurre

    model = whole_model(name)
    models = {way: smaller(model, *WAYS[way]) for way in ["whole", *options.ways]}
    macs = {way: ridurre.model_complexity(m).macs for way, m in models.items()}
    rows = []
    for runtime in options.runtimes:
        _, ending, quantised = RUNTIMES[runtime]
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for i, (way, m) in enumerate(models.items()):
                found[way] = exported(m, Path(folder, f"{i}{ending}"), quantised)
            say(f"{name}: exported for {runtime}")
            times = timed_apart([e.file for e in found.values()], model.input_shape[1], options)
        cpu = [[spent.cpu for spent in t] for t in times]
        say(f"{name}, {runtime}: {[round(statistics.median(t), 2) for t in cpu]} ms")
        for way, t, clock in zip(found, cpu, times, strict=True):
            speedups = [a / b for a, b in zip(cpu[0], t, strict=True)]
            rows.append(
                {
                    "model": name,
                    "runtime": runtime,
                    "way": way,
                    "macs": macs[way],
                    "fewer": macs["whole"] / macs[way],
                    "milliseconds": statistics.median(t),
                    "clock": statistics.median(spent.clock for spent in clock),
                    "speedup": statistics.median(speedups),
                    "quartiles": statistics.quantiles(speedups, n=4)[::2],
                    "turns": len(t),
                    "bytes": found[way].bytes,
                    "difference": found[way].difference,
                }
            )
    return rows


def table_of(rows: list[dict[str, Any]]) -> str:
    head = (
        "pruned to MACs", "runtime", "ms", "ms by the clock", "speed-up", "quartiles",
        "MACs saved", "MACs ratio", "speed-up ÷ MACs ratio", "MB", "differs from Keras",
    )  # fmt: skip
    return table(head, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["quartiles"]
    whole = row["way"] == "whole"
    return [
        row["way"],
        RUNTIMES[row["runtime"]][0],
        f"{row['milliseconds']:.2f}",
        f"{row['clock']:.2f}",
        "1" if whole else f"{row['speedup']:.2f}",
        "" if whole else f"{low:.2f}–{high:.2f}",
        "" if whole else f"{1 - 1 / row['fewer']:.0%}",
        "" if whole else f"{row['fewer']:.2f}",
        "" if whole else f"**{row['speedup'] / row['fewer']:.2f}**",
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['difference']:.1e}",
    ]


def rounding(rows: list[dict[str, Any]]) -> list[str]:
    """What round_to=8 does: the same model, runtime and goal without and with it."""
    by_key = {(r["model"], r["runtime"], r["way"]): r for r in rows}
    cells, gains = [], []
    for (model, runtime, way), plain in by_key.items():
        rounded = by_key.get((model, runtime, f"{way}, round_to=8"))
        if rounded:
            a, b = (r["speedup"] / r["fewer"] for r in (plain, rounded))
            gains.append(rounded["speedup"] / plain["speedup"])
            more = rounded["fewer"] / plain["fewer"]
            title = f"{model}, {RUNTIMES[runtime][0]}, {way}"
            cells.append([title, *(f"{x:.2f}" for x in (a, b, b / a, gains[-1], more))])
    if not cells:
        return ["Not measured."]
    head = (
        "", "speed-up ÷ MACs ratio, plain", "round_to=8", "gain",
        "faster than plain", "MACs plain ÷ rounded",
    )  # fmt: skip
    faster = sum(g > 1 for g in gains)
    summary = (
        f"Rounded models are faster than plain ones of the same goal in {faster} of {len(gains)} "
        f"cases; the median is {statistics.median(gains):.2f} times as fast, the "
        f"extremes {min(gains):.2f} and {max(gains):.2f}."
    )
    return [summary, table(head, cells)]


def quantised_by_keras() -> str:
    """What `model.quantize("int8")` reaches of MobileNetV2."""
    import warnings

    import keras

    model = keras.applications.MobileNetV2(weights=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize("int8")
    with_kernels = [x for x in model.layers if x.weights and hasattr(x, "kernel")]
    done = [x.name for x in with_kernels if getattr(x, "quantization_mode", None)]
    return f"{len(done)} of {len(with_kernels)} layers of MobileNetV2 ({', '.join(done)})"


def in_own_environment(options: Any) -> None:
    """Run this script again where the runtimes are installed."""
    needs = (HERE.parent / "requirements.txt").read_text().split()
    python = other_python(options.env, [*needs, *PACKAGES], "openvino, tf2onnx, tqdm")
    command = [str(python), __file__, *sys.argv[1:]]
    environment = os.environ | {"RIDURRE_DEPLOY": "1"}
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows and those of other models and ways that were measured earlier, all kept."""
    file = RESULTS / "deploy.json"
    older = json.loads(file.read_text("utf-8")) if file.exists() else []
    by_key = {(r["model"], r["runtime"], r["way"]): r for r in [*older, *rows]}
    every = sorted(by_key.values(), key=lambda r: (MODELS.index(r["model"]), _place(r)))
    file.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    return every


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return list(RUNTIMES).index(row["runtime"]), list(WAYS).index(row["way"])


def report(rows: list[dict[str, Any]], options: Any) -> None:
    names = list(dict.fromkeys(r["model"] for r in rows))
    parts = []
    for name in names:
        own = [r for r in rows if r["model"] == name]
        parts += [f"## {name}, {own[0]['macs'] / 1e6:.0f} million MACs", table_of(own)]
    write(
        "deploy",
        "Pruned models in LiteRT, ONNX Runtime and OpenVINO",
        here_and_now(
            ("keras", "tensorflow", "ai-edge-litert", "onnxruntime", "openvino", "tf2onnx", "numpy")
        ),
        *(x.format(runs=options.runs, turns=min(r["turns"] for r in rows)) for x in ABOUT),
        f'`model.quantize("int8")` of Keras reaches {quantised_by_keras()}; int8 is LiteRT\'s.',
        *parts,
        "## Does `round_to` help?",
        *rounding(rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS)[1:], choices=list(WAYS)[1:])
    parser.add_argument("--turns", type=int, default=60, help="at most")
    parser.add_argument("--seconds", type=float, default=30, help="after which ten turns will do")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "ridurre-deploy")
    parser.add_argument("--files", type=Path, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.files:
        return print(json.dumps(timed(options.files, options.side, options)))
    if "RIDURRE_DEPLOY" not in os.environ:
        in_own_environment(options)
    for name in options.models:
        report(kept(measured(name, options)), options)  # the next one takes minutes


if __name__ == "__main__":
    main()
