"""Draw the pictures of `thinking.md`: what the code says of one small network, as SVG.

    python docs/draw.py

A test holds the pictures in `docs/pictures/` to what this writes.
"""

from pathlib import Path

import keras
import numpy as np

import ridurre

FOLDER = Path(__file__).parent / "drawn"
CELL = 16
HUES = (205, 25)  # one per group
GREY = "#d5d5d5"
GONE = "#ffffff"


def network() -> keras.Model:
    """A residual block between a stem and a head, of widths that tell them apart."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3), name="image")
    x = stem = layers.Conv2D(5, 3, padding="same", name="stem")(inputs)
    x = layers.Conv2D(7, 3, padding="same", activation="relu", name="wide")(x)
    x = layers.Conv2D(5, 3, padding="same", name="back")(x)
    x = layers.Add(name="add")([stem, x])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def picture(name: str, width: int, height: int, parts: list[str]) -> None:
    """Write one file; white behind it, for readers in the dark."""
    text = "\n".join(parts)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>\n{text}\n</svg>\n',
        encoding="utf-8",
    )


def words(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="#222" {more}>{text}</text>'.replace(" >", ">")


def cell(x: float, y: float, fill: str, title: str = "", text: str = "") -> str:
    """A square, dashed where nothing is left in it."""
    line = '#bbb" stroke-dasharray="2 2' if fill == GONE else "#555"
    square = (
        f'<rect x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="{line}">'
        f"<title>{title}</title></rect>"
    )
    middle = words(x + CELL / 2, y + 11.5, text, 'text-anchor="middle" font-size="9"')
    return square + (middle if text else "")


def shade(group: int, unit: int, size: int) -> str:
    """A group has a hue, its units differ in lightness."""
    return f"hsl({HUES[group]},70%,{45 + 40 * unit / max(1, size - 1):.0f}%)"


class Colours:
    """The colour of every label, and of every position of every kernel."""

    def __init__(self, graph: ridurre.DependencyGraph) -> None:
        self.by_label: dict[int, str] = {}
        self.by_axis: dict[tuple[str, int], list[str]] = {}
        for group in graph.groups:
            for member in group.members:
                colours = [shade(group.index, u, group.size) for u in member.units]
                self.by_axis[member.weight.variable.path, member.weight.axis] = colours
                self.by_label |= dict(zip(member.weight.labels.ravel(), colours, strict=True))

    def axis(self, kernel: keras.Variable, axis: int) -> list[str]:
        return self.by_axis.get((kernel.path, axis), [GREY] * kernel.shape[axis])


def draw_labels(graph: ridurre.DependencyGraph, colours: Colours) -> None:
    """What stands on every tensor after the run on labels."""
    parts, y = [], 12
    for call in graph.trace.calls:
        labels = call.outputs[0].labels.ravel()
        parts.append(words(12, y + 12, f"{call.name} ({call.kind})"))
        for i, label in enumerate(labels):
            fill = colours.by_label.get(label, GREY)
            parts.append(cell(210 + i * (CELL + 4), y, fill, f"label {label}", str(label)))
        y += CELL + 8
    picture("labels", 360, y + 6, parts)


def matrices(graph: ridurre.DependencyGraph, colours: Colours, plan=None) -> list[str]:
    """Every kernel as inputs (downwards) × outputs, coloured by what its outputs belong to.

    Left of a kernel and above it stand the channels that index it; what a plan takes is empty.
    """
    parts, x = [], 30
    for layer in graph.model.layers:
        if not layer.weights:
            continue
        kernel = layer.kernel
        rows, columns = (colours.axis(kernel, len(kernel.shape) - n) for n in (2, 1))
        removed = plan.removed.get(kernel.path, {}) if plan else {}
        gone = [
            set(np.asarray(removed.get(len(kernel.shape) - n, ())).tolist()) for n in (2, 1)
        ]
        parts.append(words(x, 20, layer.name, 'font-weight="bold"'))
        heads = [(i, -1, c) for i, c in enumerate(rows)] + [(-1, j, c) for j, c in enumerate(columns)]
        for i, j, fill in heads:
            parts.append(cell(x + j * CELL, 50 + i * CELL, fill, "fixed" if fill == GREY else ""))
        for i in range(len(rows)):
            for j in range(len(columns)):
                lost = i in gone[0] or j in gone[1]
                parts.append(cell(x + j * CELL + 4, 54 + i * CELL, GONE if lost else "#f0f4f4"))
        x += (len(columns) + 2) * CELL + 14
    return [*parts, f"<!-- {x} -->"]


def main() -> None:
    keras.utils.clear_session()
    graph = ridurre.DependencyGraph(network())
    colours = Colours(graph)
    draw_labels(graph, colours)
    width, height = 30 + (5 + 7 + 5 + 2 + 2 * 4) * CELL + 4 * 14, 60 + 7 * CELL + 8
    picture("groups", width, height, matrices(graph, colours))
    plan = graph.get_pruning_plan("stem", idxs=[1, 3])
    picture("plan", width, height, matrices(graph, colours, plan))


if __name__ == "__main__":
    main()
