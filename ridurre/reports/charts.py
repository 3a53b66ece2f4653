"""The charts of a report as Vega-Lite specifications, made with Altair.

Colours of axes and text are the page's, as they depend on the reader's dark or light screen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from ridurre.optional import load
from ridurre.reports import figures
from ridurre.reports.facts import Facts, GroupFacts, Node
from ridurre.reports.layout import LEVELS, Layout, Place, draw

#: Legible on white and on black.
GROUP_COLOURS = (
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b79a20",
    "#b279a2", "#d67195", "#9d755d", "#6f9fd8", "#88a04b", "#a37cf0",
)  # fmt: skip
NO_GROUP = "#8a8f98"
#: From nothing cut to all cut.
CUT_COLOURS = ("#4c9be8", "#8d8fd0", "#c57fa8", "#e8743b", "#d62f2f")
KEPT, REMOVED = CUT_COLOURS[0], CUT_COLOURS[3]

#: Lines that the picture of a network is high at least.
_FEWEST = 10
#: Charts are as wide as their boxes.
_FIT: Any = {"type": "fit-x", "contains": "padding"}
_INSTEAD = "pip install ridurre[report] brings all that they need."

Rows = list[dict[str, Any]]


def charts(facts: Facts) -> dict[str, dict[str, Any]]:
    """Specifications by name; charts without data are left out.

    Raises:
        RequestError: Altair or igraph is not installed.
    """
    alt = _altair()
    made = {
        "accuracy": _accuracy(alt, facts),
        "sizes": _sizes(alt, facts),
        "times": _times(alt, facts),
        "network": _network(alt, facts),
        "importances": _importances(alt, facts),
    }
    return {name: spec for name, spec in made.items() if spec is not None}


@functools.cache
def javascript() -> str:
    """The libraries that draw the charts, as one script that needs no network.

    Raises:
        RequestError: vl-convert-python is not installed.
    """
    alt = _altair()
    vl_convert = load("vl_convert", "HTML reports", _INSTEAD)
    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    return vl_convert.javascript_bundle(vl_version=version)


def _altair() -> Any:
    return load("altair", "HTML reports", _INSTEAD)


def _spec(chart: Any, **rows: Rows) -> dict[str, Any] | None:
    """A chart with its data by name; None where there are none."""
    if not any(rows.values()):
        return None
    return {**chart.to_dict(), "datasets": rows}


def _accuracy(alt: Any, facts: Facts) -> dict[str, Any] | None:
    names = {"accuracy": "fine-tuned", "accuracy_before_finetuning": "just cut"}
    rows = [
        {"round": s.step + 1, "when": said, "accuracy": getattr(s, name)}
        for s in facts.history
        for name, said in names.items()
        if getattr(s, name) is not None
    ]
    y = alt.Y("accuracy:Q", title="accuracy").scale(zero=False)
    return _spec(_lines(alt, y, "when:N", alt.Tooltip("accuracy:Q", format=".4f")), rows=rows)


def _sizes(alt: Any, facts: Facts) -> dict[str, Any] | None:
    a = facts.original
    whole = {"parameters": a.parameters, "macs": a.macs}
    rows: Rows = []
    if facts.history:
        rows = [{"round": 0, "size": _SIZES[k], "left": 1.0} for k, n in whole.items() if n]
    rows += [
        {"round": s.step + 1, "size": _SIZES[k], "left": getattr(s, k) / n}
        for s in facts.history
        for k, n in whole.items()
        if n and getattr(s, k) is not None
    ]
    y = alt.Y("left:Q", title="left of the original").axis(format="%").scale(domainMin=0)
    return _spec(_lines(alt, y, "size:N", alt.Tooltip("left:Q", format=".1%")), rows=rows)


_SIZES = {"parameters": "parameters", "macs": "MACs"}


def _lines(alt: Any, y: Any, colour: str, tooltip: Any) -> Any:
    return (
        alt.Chart(alt.NamedData("rows"), width="container", height=220, autosize=_FIT)
        .mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2.5)
        .encode(
            x=_rounds(alt),
            y=y,
            color=alt.Color(colour, title=None).scale(range=[KEPT, REMOVED]),
            tooltip=["round:O", colour, tooltip],
        )
    )


def _rounds(alt: Any) -> Any:
    return alt.X("round:O", title="round").axis(labelAngle=0, labelOverlap=True)


def _times(alt: Any, facts: Facts) -> dict[str, Any] | None:
    rows = [
        {"round": s.step + 1, "phase": phase, "seconds": seconds}
        for s in facts.history
        for phase, seconds in _phases(s.phases, s.seconds)
    ]
    chart = (
        alt.Chart(alt.NamedData("rows"), width="container", height=220, autosize=_FIT)
        .mark_bar()
        .encode(
            x=_rounds(alt),
            y=alt.Y("seconds:Q", title="seconds", stack=True),
            color=alt.Color("phase:N", title=None).scale(range=list(GROUP_COLOURS)),
            tooltip=["round:O", "phase:N", alt.Tooltip("seconds:Q", format=".3g")],
        )
    )
    return _spec(chart, rows=rows)


def _phases(phases: dict[str, float], total: float) -> list[tuple[str, float]]:
    rest = total - sum(phases.values())
    return [*phases.items(), ("other", max(0.0, rest))]


def _network(alt: Any, facts: Facts) -> dict[str, Any] | None:
    drawn = draw(facts.nodes)
    nodes = [_node(facts, n, p) for n, p in zip(facts.nodes, drawn.places, strict=True)]
    x = alt.X("x:Q", axis=None).scale(domain=[0, drawn.columns], nice=False)
    levels = max(_FEWEST, 1 + max((math.ceil(place.y) for place in drawn.places), default=0))
    y = alt.Y("y:Q", axis=None).scale(domain=[-0.7, levels - 0.3], reverse=True, nice=False)
    found = "search && indexof(lower(datum.layer), lower(search)) >= 0"
    lines = (
        alt.Chart(alt.NamedData("edges"))
        .mark_line(
            interpolate="basis",
            clip=True,
            color=NO_GROUP,
            tooltip=False,
            strokeWidth=1.5,
            opacity=0.7,
        )
        .encode(x=x, y=y, order="step:Q")
    )
    dots = (
        alt.Chart(alt.NamedData("nodes"))
        .mark_circle(clip=True, opacity=1, fill=alt.ExprRef("datum[by]"), stroke="#ff2d87")
        .encode(
            x=x,
            y=y,
            size=alt.when(found).then(alt.value(260)).otherwise(alt.value(110)),
            strokeWidth=alt.when(found).then(alt.value(4)).otherwise(alt.value(0)),
            tooltip=["layer:N", "type:N", "group:N", "channels:N", "removed:N"],
        )
        .add_params(alt.selection_interval(name="pan", bind="scales", zoom="wheel![event.ctrlKey]"))
    )
    labels = (
        alt.Chart(alt.NamedData("nodes"))
        .mark_text(
            clip=True,
            align="left",
            baseline="middle",
            dx=9,
            limit=alt.ExprRef(f"{found} ? 0 : max(1, datum.room * width / span(domain('x')) - 18)"),
            tooltip=False,
        )
        .encode(
            x=x,
            y=y,
            text="layer:N",
            opacity=alt.when(f"({found}) || width / span(domain('x')) > 90")
            .then(alt.value(1))
            .otherwise(alt.value(0)),
        )
    )
    chart = alt.layer(
        lines, dots, labels, width="container", height=round(620 / LEVELS * levels), autosize=_FIT
    ).add_params(alt.param(name="search", value=""), alt.param(name="by", value="by_group"))
    made = _spec(chart, nodes=nodes, edges=_lines_of(drawn))
    return made and {**made, "usermeta": {"columns": drawn.columns, "levels": levels}}


def _node(facts: Facts, node: Node, place: Place) -> dict[str, Any]:
    groups = [facts.groups[i] for i in node.groups]
    single = node.groups[0] if len(node.groups) == 1 else None
    removed = figures.fraction_saved(node.channels)
    return {
        "x": place.x,
        "y": place.y,
        "room": place.room,
        "layer": node.name,
        "type": node.kind,
        "group": _group_text(node.groups, groups),
        "channels": figures.arrow(node.channels),
        "removed": f"{removed:.0%}",
        "by_group": NO_GROUP if single is None else GROUP_COLOURS[single % len(GROUP_COLOURS)],
        "by_cut": _cut_colour(removed) if groups else NO_GROUP,
    }


def _group_text(indices: Sequence[int], groups: Sequence[GroupFacts]) -> str:
    if not groups:
        return "none: cannot be pruned"
    if len(groups) > 1:
        return f"{len(groups)} groups: {', '.join(map(str, indices))}"
    made = groups[0].layers
    more = f" and {len(made) - 3} more" if len(made) > 3 else ""
    return f"{indices[0]}: {', '.join(made[:3])}{more}"


def _cut_colour(fraction: float) -> str:
    last = len(CUT_COLOURS) - 1
    return CUT_COLOURS[min(last, max(0, round(fraction * last)))]


def _lines_of(drawn: Layout) -> Rows:
    """All lines as one, which is much faster to draw; it breaks where a point has no height."""
    points = [point for line in drawn.lines for point in (*line, (0.0, None))]
    return [{"step": step, "x": x, "y": y} for step, (x, y) in enumerate(points)]


def _importances(alt: Any, facts: Facts) -> dict[str, Any] | None:
    rows = [row for i, group in enumerate(facts.groups) for row in _bars(facts, i, group)]
    fate = alt.Color("fate:N", legend=None).scale(
        domain=["kept", "units", "removed"], range=[KEPT, KEPT, REMOVED]
    )
    bars = (
        alt.Chart()
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low:Q", title=None).axis(tickCount=3, format="~g").scale(zero=False),
            x2="high:Q",
            y=alt.Y("bottom:Q", title=None).axis(tickCount=3, tickMinStep=1),
            y2="top:Q",
            color=fate,
            tooltip=[
                alt.Tooltip("units:Q"),
                alt.Tooltip("fate:N"),
                alt.Tooltip("low:Q", title="from", format=".4g"),
                alt.Tooltip("high:Q", title="to", format=".4g"),
            ],
        )
    )
    line = (
        alt.Chart()
        .mark_rule(strokeDash=[5, 3], color=CUT_COLOURS[-1])
        .encode(
            x="min(line):Q",
            strokeWidth=alt.StrokeWidth("max(width):Q", legend=None, scale=None),
            tooltip=alt.Tooltip("min(line):Q", title="cut at", format=".4g"),
        )
    )
    header = alt.Header(title=None, labelLimit=230, labelAnchor="start", labelFontWeight="bold")
    chart = (
        alt.layer(bars, line, data=alt.NamedData("rows"), width=230, height=90)
        .facet(facet=alt.Facet("title:N", header=header).sort(field="group"), columns=1)
        .resolve_scale(x="independent", y="independent")
    )
    return _spec(chart, rows=rows)


def _bars(facts: Facts, index: int, group: GroupFacts) -> Rows:
    """Bars of one group's histogram, what went on top of what stayed."""
    histogram = group.histogram
    if histogram is None:
        return []
    low_end = histogram.edges[0]
    stays = "kept" if facts.plan_known else "units"
    bins = zip(
        histogram.edges, histogram.edges[1:], histogram.kept, histogram.removed, strict=False
    )
    return [
        {
            "group": index,
            "title": f"{index}: {', '.join(group.layers)}",
            "low": low,
            "high": high,
            "bottom": bottom,
            "top": bottom + count,
            "units": count,
            "fate": fate,
            # Of a group without a cut it has no width: without a place Vega complains.
            "line": low_end if histogram.cut is None else histogram.cut,
            "width": 0 if histogram.cut is None else 2,
        }
        for low, high, kept, removed in bins
        for bottom, count, fate in ((0, kept, stays), (kept, removed, "removed"))
        if count
    ]
