"""Every architecture of keras.applications: how much of it can be pruned, and is it exact?

    python benchmarks/zoo.py                         # all, about 25 minutes on 2 cores
    python benchmarks/zoo.py --models ResNet50 VGG16

Each model is built with random weights (`weights=None`, `ridurre.testing.randomise`), half of every
prunable group is removed at random, and `ridurre.verify` compares with the original whose removed
slices are zero. Where statistics run across channels (layer normalisation) a cut is not exact by
design; then the groups that touch none are cut and verified, and the full cut has to give finite
outputs.
"""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
import time
from typing import Any

import common

INPUTS = {"top": (True, 96), "no top": (False, 96), "open size": (False, None)}


def architectures() -> list[str]:
    """Names of all model functions of keras.applications."""
    import keras

    names = [n for n in dir(keras.applications) if n[0].isupper()]
    return [n for n in names if inspect.isfunction(getattr(keras.applications, n))]


def examine(name: str, top: bool, size: int | None) -> dict[str, Any]:
    """Build, label, plan, rebuild and verify one model."""
    import keras
    import numpy as np

    import ridurre
    from ridurre.testing import randomise

    arguments: dict[str, Any] = {"classifier_activation": None} if top else {}
    model = getattr(keras.applications, name)(
        weights=None, include_top=top, input_shape=(size, size, 3), **arguments
    )
    randomise(model)
    inputs = np.random.default_rng(0).normal(size=(1, 96, 96, 3)).astype("float32")
    try:
        model(inputs, training=False)
    except Exception as error:
        return {"unable": f"the original does not run: {type(error).__name__}"}
    start = time.perf_counter()
    graph = ridurre.DependencyGraph(model)
    labelled = time.perf_counter()
    rng = np.random.default_rng(0)
    request = {g: np.sort(rng.permutation(g.size)[: g.size // 2]) for g in graph.groups}
    begun = time.perf_counter()
    plan = graph.get_pruning_plan(request)
    planned = time.perf_counter()
    smaller = plan.exec()
    rebuilt = time.perf_counter()
    result = {
        "label": labelled - start,
        "plan": planned - begun,
        "rebuild": rebuilt - planned,
        "layers": len(model.layers),
        "groups": len(graph.groups),
        "prunable": prunable_share(graph, top),
        "left": smaller.count_params() / model.count_params(),
        "barriers": sorted(set(graph.barriers.values())),
        "inexact": len(plan.inexact),
    }
    if not plan.exact:
        outputs = keras.ops.convert_to_numpy(smaller(inputs, training=False))
        result["finite"] = bool(np.isfinite(outputs).all())
        request = {g: i for g, i in request.items() if graph.get_pruning_plan(g, i).exact}
        plan = graph.get_pruning_plan(request)
        smaller = plan.exec()
    result["difference"] = ridurre.verify(model, smaller, plan, inputs=inputs)
    return result


def prunable_share(graph: Any, top: bool) -> float:
    """Share of the parameters outside the classifier that a prunable group owns.

    A position of a weight counts if its index along any axis belongs to a group. The classifier
    is the last layer with weights.
    """
    import numpy as np

    from ridurre.backend import parameters_of

    covered: dict[int, float] = {}
    for group in graph.groups:
        for member in group.members:
            key = (id(member.weight.variable), member.weight.axis)
            mask = covered.setdefault(key, np.zeros(len(member.units), bool))
            mask |= member.units >= 0
    owned = total = 0.0
    layers = [x for x in graph.layers.values() if x.weights]
    for layer in layers[:-1] if top else layers:
        counted = parameters_of(layer)
        for v in {id(v): v for v in layer.weights if id(v) in counted}.values():
            free = np.prod([1 - m.mean() for (key, _), m in covered.items() if key == id(v)])
            total += np.prod(v.shape)
            owned += np.prod(v.shape) * (1 - free)
    return owned / total


def row(name: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """One line of the table."""
    cells = [name]
    first = results.get("top", {})
    if "error" in first:
        cells += ["", "", "", "", "", "", ""]
    else:
        cells += [
            str(first["layers"]),
            str(first["groups"]),
            f"{100 * first['prunable']:.1f}",
            f"{100 * first['left']:.0f}",
            f"{1e3 * first['label']:.0f}",
            f"{1e3 * first['plan']:.0f}",
            f"{1e3 * first['rebuild']:.0f}",
        ]
    for result in results.values():
        if "error" in result:
            cells.append(result["error"][:80])
            continue
        if "unable" in result:
            cells.append(result["unable"])
            continue
        note = f" ({result['inexact']} normalisers)" if result["inexact"] else ""
        note += f" barriers: {', '.join(result['barriers'])}" if result["barriers"] else ""
        note += "" if result.get("finite", True) else " NOT FINITE"
        cells.append(f"{result['difference']:.1e}{note}")
    return cells


def main() -> None:
    """Run every model in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", help="names; all by default")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        common.serve({"examine": examine})
        return
    listed = subprocess.run(
        [sys.executable, "-c", "import zoo; print(*zoo.architectures())"],
        cwd=common.HERE, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    names = options.models or listed
    rows, failures = [], 0
    for name in names:
        results: dict[str, dict[str, Any]] = {}
        with common.Worker([sys.executable, __file__, "--worker"], timeout=900) as worker:
            for kind, (top, size) in INPUTS.items():
                try:
                    results[kind] = worker.call("examine", name=name, top=top, size=size)
                except common.WorkerError as error:
                    results[kind] = {"error": str(error).splitlines()[0]}
        rows.append(row(name, results))
        failures += any("error" in r or r.get("difference", 0) > 1e-4 for r in results.values())
        common.say(" | ".join(rows[-1]))
    header = [
        "architecture", "layers", "groups", "prunable [%]", "parameters left [%]", "label [ms]",
        "plan [ms]", "rebuild [ms]", "difference, with top", "without top", "open input size",
    ]  # fmt: skip
    common.write(
        "zoo",
        "keras.applications: half of every prunable group removed",
        common.here_and_now(),
        "96×96 inputs, random weights and statistics. *prunable*: share of the parameters outside "
        "the classifier that belong to a prunable group. *difference*: of the pruned model from "
        "the original whose removed slices are zero, relative to the largest output; for models "
        "with normalisers across channels (their number in brackets) it is measured with all "
        "groups cut that touch none of these, and the full cut gives finite outputs.",
        f"{len(rows) - failures} of {len(rows)} pass (difference at most 1e-4).",
        common.table(header, rows),
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
