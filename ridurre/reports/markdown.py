"""A report as Markdown; names stand in code spans, so that none is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ridurre.reports import figures
from ridurre.reports.facts import STATUSES, Facts, Histogram

_BLOCKS = "▁▂▃▄▅▆▇█"


def render(facts: Facts) -> str:
    """The whole report as Markdown."""
    parts = [
        f"# Pruning report: {code(facts.original.name)}",
        _table(
            ("", "before", "after", "change"),
            [(_plain(r.label), r.before, r.after, r.change) for r in figures.rows(facts)],
        ),
        "\n".join(f"- {_plain(note)}" for note in facts.notes),
        *_layers(facts),
        *_run(facts),
        *_groups(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def code(text: str) -> str:
    """Any text as a code span that is whole on its line and in its cell."""
    text = re.sub(r"\s+", " ", text).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _plain(text: str) -> str:
    """Any text with nothing left that Markdown or HTML would read."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)


def _layers(facts: Facts) -> list[str]:
    head = ("layer", "type", "channels", "parameters", "MACs", "share of saved MACs", "")
    cells = []
    for x in figures.listed(facts):
        share = f"{figures.share(facts, x, 'macs'):.0%}"
        said = f"{STATUSES[x.status]}{': ' if x.reason else ''}{_plain(x.reason)}"
        sizes = (figures.channels(x), figures.arrow(x.parameters), figures.arrow(x.macs))
        cells.append((code(x.name), code(x.kind), *sizes, share, said))
    return ["## Layers", _table(head, cells)] if cells else []


def _run(facts: Facts) -> list[str]:
    head = ("step", "filters", "parameters", "MACs", "accuracy", "time", "")
    cells = [
        (
            str(s.step),
            figures.number(s.filters),
            figures.number(s.parameters),
            figures.number(s.macs),
            "" if s.accuracy is None else f"{s.accuracy:.4f}",
            figures.seconds(s.seconds),
            _plain(s.stopped or "") if s.accepted else "not accepted",
        )
        for s in facts.history
    ]
    return ["## Run", _table(head, cells)] if cells else []


def _groups(facts: Facts) -> list[str]:
    head = ("group", "made by", "channels", "removed", "importance, low to high", "cut at")
    cells = [
        (
            str(index),
            ", ".join(map(code, g.layers)),
            str(g.size),
            figures.number(g.removed),
            "" if g.histogram is None else _sparkline(g.histogram),
            "" if g.histogram is None or g.histogram.cut is None else f"{g.histogram.cut:.4g}",
        )
        for index, g in enumerate(facts.groups)
    ]
    return ["## Groups of coupled channels", _table(head, cells)] if cells else []


def _sparkline(histogram: Histogram) -> str:
    counts = [a + b for a, b in zip(histogram.kept, histogram.removed, strict=True)]
    most = max(1, *counts)
    return "".join(_BLOCKS[round(c / most * (len(_BLOCKS) - 1))] for c in counts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
