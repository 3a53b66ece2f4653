"""Every backbone class of keras_hub: how much of it can be pruned, and does the result work?

    python benchmarks/keras_hub.py                   # all, about 20 minutes on 2 cores
    python benchmarks/keras_hub.py --models BertBackbone ResNetBackbone
    python benchmarks/keras_hub.py --only-graph      # seconds a class: how many groups

Each backbone is made small and offline with random weights (`hub_models.py`), half of every group
is removed, and the result is run, saved, loaded and run again. The groups whose removal is exact
are cut by themselves too, and `ridurre.verify` compares with the original whose removed slices are
zero.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import common
import hub_models

#: Seconds that one backbone may take.
LIMIT = 400
#: From this share of parameters in groups on, a backbone counts as pruned.
WHOLE = 0.5


def examine(name: str, only_graph: bool = False) -> dict[str, Any]:
    """Build, label, plan, rebuild, run, verify, save and load one backbone."""
    import ridurre
    from ridurre.testing import randomise

    warnings.simplefilter("ignore")
    model = hub_models.make(name)
    randomise(model)
    inputs = inputs_of(model)
    start = time.perf_counter()
    graph = ridurre.DependencyGraph(model)
    result = {
        "seconds": time.perf_counter() - start,
        "groups": len(graph.groups),
        "before": model.count_params(),
        "share": prunable_share(graph, model),
        "reasons": reasons(graph),
        "stays": stays(graph),
    }
    if graph.groups and not only_graph:
        result |= cut(model, graph, inputs)
        result["seconds"] = time.perf_counter() - start
    return result


def cut(model: Any, graph: Any, inputs: Any) -> dict[str, Any]:
    """Remove half of every group, and all exact removals by themselves."""
    import numpy as np

    import ridurre
    from ridurre.verification import outputs_of

    rng = np.random.default_rng(0)
    request = {g: np.sort(rng.permutation(g.size)[: g.size // 2]) for g in graph.groups}
    request = {g: indices for g, indices in request.items() if len(indices)}
    plan = graph.get_pruning_plan(request)
    smaller = plan.exec()
    outputs = outputs_of(smaller, inputs)
    result = {
        "after": smaller.count_params(),
        "finite": all(bool(np.isfinite(y).all()) for y in outputs),
        "saved": round_trip(smaller, inputs, outputs),
        "original_saved": round_trip(model, inputs, outputs_of(model, inputs)),
    }
    if plan.exact:
        result["difference"] = ridurre.verify(model, smaller, plan, inputs=inputs)
        return result
    request = {g: i for g, i in request.items() if graph.get_pruning_plan(g, i).exact}
    if request:
        plan = graph.get_pruning_plan(request)
        result["inexact"] = len(graph.groups) - len(request)
        result["difference"] = ridurre.verify(model, plan.exec(), plan, inputs=inputs)
    return result


def inputs_of(model: Any) -> Any:
    """Random inputs that the model takes: along open axes the longest size that it runs with."""
    import numpy as np

    from ridurre.data import random_inputs
    from ridurre.verification import outputs_of

    failure: Exception | None = None
    for size in (64, 32, 16, 8, 4, 2, 1):
        inputs = random_inputs(model, open_size=size)
        try:
            if all(np.isfinite(y).all() for y in outputs_of(model, inputs)):
                return inputs
        except Exception as error:  # whatever a backbone says to a size
            failure = failure or error
    raise RuntimeError(f"The original does not run on random inputs: {failure}")


def round_trip(model: Any, inputs: Any, outputs: list[Any]) -> str:
    """Whether a model computes the same after saving and loading; what fails, if it does not."""
    import keras
    import numpy as np

    from ridurre.verification import outputs_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            again = outputs_of(keras.saving.load_model(path), inputs)
        except Exception as error:  # whatever a backbone's own code raises
            return f"{type(error).__name__}: {short(str(error), 160)}"
    same = all(np.allclose(a, b, atol=1e-5) for a, b in zip(outputs, again, strict=True))
    return "yes" if same else "other outputs"


def prunable_share(graph: Any, model: Any) -> float:
    """Share of the parameters that a prunable group owns along any axis of a weight."""
    import numpy as np

    from ridurre.backend import parameters_of

    covered: dict[int, dict[int, Any]] = collections.defaultdict(dict)
    for group in graph.groups:
        for member in group.members:
            axes = covered[id(member.weight.variable)]
            mask = axes.setdefault(member.weight.axis, np.zeros(len(member.units), bool))
            mask |= member.units >= 0
    counted = parameters_of(model)
    owned = total = 0.0
    for variable in model.variables:
        if id(variable) in counted:
            size = float(np.prod(variable.shape))
            free = np.prod([1 - mask.mean() for mask in covered[id(variable)].values()])
            owned, total = owned + size * (1 - free), total + size
    return owned / max(total, 1)


def stays(graph: Any) -> list[str]:
    """What else keeps channels from going, by the operations that do."""
    from ridurre.graph.labels import Reason

    told = (Reason.INPUT, Reason.OUTPUT, Reason.NO_RULE, Reason.CODE, Reason.ONLY)
    found: collections.Counter[str] = collections.Counter()
    for _, where in graph.trace.space.frozen:
        if where.reason not in told:
            found[f"{where.kind}: {where.reason.value}"] += 1
    return [f"{text} (×{n})" if n > 1 else text for text, n in found.most_common()]


def reasons(graph: Any) -> list[str]:
    """What keeps channels from going, as far as a user can do something about it."""
    from ridurre.graph.labels import Reason

    classes = {c.name: c.kind for c in graph.trace.calls}
    found: collections.Counter[str] = collections.Counter()
    for name, why in graph.trace.closed.items():
        found[f"{classes.get(name, name)}: {short(why, 200)}"] += 1
    closed = {classes.get(name) for name in graph.trace.closed}
    for kind in graph.barriers.values():
        if kind not in closed:
            found[f"{kind}: no rule"] += 1
    for _, where in graph.trace.space.frozen:
        if where.reason is Reason.CODE:
            found[f"{where.kind}: {where.reason.value}"] += 1
    return [f"{text} (×{n})" if n > 1 else text for text, n in found.most_common()]


def short(text: str, most: int) -> str:
    """A message in one line of a Markdown table; its brackets are no links."""
    text = re.sub(r"\x1b\[\d+m", "", " ".join(text.split())).replace("|", "/")
    text = text if len(text) <= most else text[: most - 1] + "…"
    return re.sub(r"([][])", r"\\\1", text)


def status(result: dict[str, Any]) -> str:
    """What became of a backbone, in a word."""
    if "error" in result:
        return "failed"
    if not result["groups"]:
        return "refused"
    if "after" in result and not result["finite"]:
        return "failed"
    whole = not result["reasons"] and result["share"] >= WHOLE
    return "pruned" if whole else "partly"


def cell(saved: str, original: str) -> str:
    """Whether a file gives the pruned model back, next to the original."""
    if saved in ("", "yes"):
        return saved
    return "no" if original == "yes" else "nor"


def row(name: str, result: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if "error" in result:
        return [name, "failed", "", "", "", "", "", "", short(result["error"], 300)]
    saved = result.get("saved", "")
    notes = result["reasons"] + result["stays"]
    if saved not in ("", "yes"):
        notes.append(f"`.keras`: {saved}")
    difference = f"{result['difference']:.0e}" if "difference" in result else "none is exact"
    others = f" ({result['inexact']} others)" if result.get("inexact") else ""
    return [
        name,
        status(result),
        str(result["groups"]),
        f"{100 * result['share']:.0f}",
        str(result["before"]),
        str(result.get("after", "")),
        difference + others if "after" in result else "",
        cell(saved, result.get("original_saved", "")),
        "; ".join(notes),
    ]


def collect(chosen: list[str], only_graph: bool) -> dict[str, dict[str, Any]]:
    """What became of each backbone; one process serves until something goes wrong in it."""
    results: dict[str, dict[str, Any]] = {}
    left = collections.deque(chosen)
    while left:
        with common.Worker([sys.executable, __file__, "--worker"], timeout=LIMIT) as worker:
            while left:
                name = left.popleft()
                try:
                    results[name] = worker.call("examine", name=name, only_graph=only_graph)
                except common.WorkerError as error:
                    results[name] = {"error": str(error)}
                common.say(" | ".join(row(name, results[name])))
                if "error" in results[name]:
                    break
    return results


def page(results: dict[str, dict[str, Any]]) -> list[str]:
    """The tables: a summary by family, then every backbone."""
    words = ["pruned", "partly", "refused", "failed"]
    header = ["backbone", "", "groups", "in groups [%]", "parameters", "left", "difference",
              "`.keras`", "what stays, and why"]  # fmt: skip
    counts, parts = [], []
    for family, members in hub_models.FAMILIES.items():
        here = [n for n in members if n in results]
        if not here:
            continue
        found = [status(results[n]) for n in here]
        counts.append([family, *(found.count(w) for w in words), len(here)])
        parts += [f"## {family}", common.table(header, [row(n, results[n]) for n in here])]
    totals = [sum(x) for x in zip(*(c[1:] for c in counts), strict=True)]
    summary = common.table(["family", *words, "all"], [*counts, ["all", *totals]])
    return [summary, *parts]


def main() -> None:
    """Run every backbone and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", help="names of classes; all by default")
    parser.add_argument("--only-graph", action="store_true", help="find groups, cut nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        common.serve({"examine": examine})
        return
    command = [sys.executable, "-c", "import hub_models; print(*hub_models.backbones())"]
    listed = subprocess.run(
        command, cwd=common.HERE, capture_output=True, text=True, check=True
    ).stdout.split()
    unknown = set(listed) ^ set(hub_models.families())
    if unknown:
        common.say(f"classes without sizes here, or that are gone: {', '.join(sorted(unknown))}")
    results = collect(options.models or listed, options.only_graph)
    if options.models or options.only_graph:
        return
    common.write(
        "keras_hub",
        "keras_hub: half of every group of every backbone removed",
        common.here_and_now(("keras", "keras-hub", "tensorflow", "numpy")),
        "Small backbones with random weights, made offline. *pruned*: all code was looked into and "
        f"at least {100 * WHOLE:.0f} % of the parameters belong to a group that can be cut (the "
        "width of the output cannot, by default); *partly*: some cannot, the last column says why; "
        "*refused*: nothing can be cut. *left*: parameters after half of every group was cut; the "
        "result ran and gave finite outputs. *difference*: of the pruned model from the original "
        "whose removed slices are zero, relative to the largest output, with all groups cut whose "
        "removal is exact; behind it the number of others (normalisers compute across their "
        "channels). *`.keras`*: the pruned model was saved, loaded, and gave the same outputs; "
        "*nor*: the original did not either.",
        *page(results),
    )
    sys.exit(any(status(r) == "failed" for r in results.values()))


if __name__ == "__main__":
    main()
