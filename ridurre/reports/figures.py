"""Numbers of a report as people read them; every renderer shows the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ridurre.reports.facts import Facts, LayerFacts, ModelFacts, Pair, Spread

_MISSING = "?"

Both: TypeAlias = tuple[float | None, float | None]


@dataclass(frozen=True)
class Row:
    """One quantity before and after, as text.

    Attributes:
        label: what it is.
        before, after: with their units.
        change: relative for sizes, absolute for metrics; empty where unknown.
        short: both as one text, without what needs much room.
        left: what is left, as a fraction of what was; None for metrics and where unknown.
        hint: how the quantity is defined.
    """

    label: str
    before: str
    after: str
    change: str
    short: str
    left: float | None
    hint: str


def rows(facts: Facts) -> list[Row]:
    """The two models as wholes, quantity by quantity; what neither has is left out."""
    a, b = facts.original, facts.pruned
    found = [
        _count("parameters", (a.parameters, b.parameters), "weights that training changes"),
        _count("MACs", (a.macs, b.macs), "multiply-accumulates for one sample"),
        _bytes("activation memory", (a.activation_memory, b.activation_memory), "one sample"),
        _bytes("file size", (a.file_size, b.file_size), "as .keras, without an optimizer"),
        _latency(a.latency, b.latency),
    ]
    if _sparse(a) or _sparse(b):
        found.insert(1, _count("nonzero parameters", (a.nonzero, b.nonzero), "not exactly zero"))
    names = dict.fromkeys([*a.metrics, *b.metrics])
    found += [_metric(n, a.metrics.get(n), b.metrics.get(n)) for n in names]
    return [row for row in found if (row.before, row.after) != (_MISSING, _MISSING)]


def number(value: float | None) -> str:
    """A whole number with separators, or a question mark."""
    return _MISSING if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """A number with three digits and a unit, where it is large."""
    for unit, factor in (("G", 1e9), ("M", 1e6)):
        if value is not None and value >= factor:
            return f"{value / factor:.3g} {unit}"
    return number(value)


def size(value: float | None) -> str:
    """Bytes with a unit that fits."""
    if value is None:
        return _MISSING
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            break
        value, unit = value / 1000, {"B": "kB", "kB": "MB", "MB": "GB"}[unit]
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def seconds(value: float | None) -> str:
    """A time with a unit that fits."""
    if value is None:
        return _MISSING
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def arrow(pair: Pair, form: Callable[[float | None], str] = number) -> str:
    """``16 → 10``, or one number where nothing changed."""
    before, after = (form(n) for n in pair)
    return before if before == after else f"{before} → {after}"


def fraction_saved(pair: Pair) -> float:
    """How much of a quantity went, 0 where that is unknown or it was nothing."""
    before, after = pair
    return (before - after) / before if before and after is not None else 0.0


def channels(layer: LayerFacts) -> str:
    """The channels of a layer before and after; empty where it makes none."""
    return "" if layer.channels == (None, None) else arrow(layer.channels)


def share(facts: Facts, layer: LayerFacts, what: str) -> float:
    """A layer's part in what the whole model saved of ``"parameters"`` or ``"macs"``.

    Layers that grew count as nothing saved.
    """
    total = sum(_saved(getattr(x, what)) for x in facts.layers)
    return _saved(getattr(layer, what)) / total if total else 0.0


def listed(facts: Facts) -> list[LayerFacts]:
    """The layers that have something to say: weights, MACs, or a reason."""
    return [x for x in facts.layers if any((*x.parameters, *x.macs)) or x.reason]


def percent(fraction: float | None) -> str:
    """A change with its sign, in per cent."""
    if fraction is None:
        return ""
    text = f"{abs(100 * fraction):.1f} %"
    return "0 %" if text == "0.0 %" else ("−" if fraction < 0 else "+") + text


def _sparse(model: ModelFacts) -> bool:
    """Whether more is zero than the biases of a fresh model."""
    return (model.nonzero or 0) < 0.9 * (model.parameters or 0) and model.nonzero is not None


def _saved(pair: Pair) -> int:
    return max(0, (pair[0] or 0) - (pair[1] or 0)) if None not in pair else 0


def _left(pair: Both) -> float | None:
    return pair[1] / pair[0] if pair[0] and pair[1] is not None else None


def _relative(
    label: str, pair: Both, hint: str, texts: tuple[str, str], brief: tuple[str, str]
) -> Row:
    left = _left(pair)
    change = percent(None if left is None else left - 1)
    return Row(label, *texts, change, " → ".join(brief), left, hint)


def _count(label: str, pair: Pair, hint: str) -> Row:
    return _relative(label, pair, hint, _both(number, pair), _both(short, pair))


def _bytes(label: str, pair: Pair, hint: str) -> Row:
    return _relative(label, pair, hint, _both(size, pair), _both(size, pair))


def _latency(before: Spread | None, after: Spread | None) -> Row:
    medians = (before.median if before else None, after.median if after else None)
    hint = "one sample; median (quartiles) on this machine"
    return _relative(
        "latency", medians, hint, _both(_spread, (before, after)), _both(seconds, medians)
    )


def _metric(name: str, before: float | None, after: float | None) -> Row:
    texts = _both(lambda x: _MISSING if x is None else f"{x:.4g}", (before, after))
    change = "" if before is None or after is None else f"{after - before:+.4f}".replace("-", "−")
    return Row(name, *texts, change, " → ".join(texts), None, "on the data that were given")


def _spread(x: Spread | None) -> str:
    if x is None:
        return _MISSING
    return f"{seconds(x.median)} ({seconds(x.low)} – {seconds(x.high)})"


def _both(form: Callable[[Any], str], pair: Sequence[Any]) -> tuple[str, str]:
    before, after = pair
    return form(before), form(after)
