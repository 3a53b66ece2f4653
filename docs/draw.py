"""Draw the pictures of `thinking.md`: what the code says of one small network, as SVG.

    python docs/draw.py

A test holds the files in `docs/drawn/` to what this writes.
"""

from pathlib import Path

import keras
import numpy as np

import ridurre

FOLDER = Path(__file__).resolve().parent / "drawn"
CELL = 16
HUES = (205, 25)  # one per group
FIXED, BODY, GONE = "#d5d5d5", "#f0f4f4", "#fff"


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


class Colours:
    """The colour of every label, and of every position along the axes of kernels."""

    def __init__(self, graph: ridurre.DependencyGraph) -> None:
        self.by_label: dict[int, str] = {}
        self.by_axis: dict[tuple[str, int], list[str]] = {}
        for group in graph.groups:
            for member in group.members:
                colours = [shade(group, unit) for unit in member.units]
                self.by_axis[member.weight.variable.path, member.weight.axis] = colours
                self.by_label |= dict(zip(member.weight.labels.ravel(), colours, strict=True))

    def along(self, kernel: keras.Variable, axis: int) -> list[str]:
        return self.by_axis.get((kernel.path, axis), [FIXED] * kernel.shape[axis])


def shade(group: ridurre.Group, unit: int) -> str:
    """A group has a hue, its units differ in lightness."""
    return f"hsl({HUES[group.index]},70%,{45 + 40 * unit / (group.size - 1):.0f}%)"


def words(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{style}>{text}</text>'


def square(x: float, y: float, fill: str) -> str:
    """A square, dashed where nothing is left."""
    line = '#bbb" stroke-dasharray="2' if fill == GONE else "#555"
    return f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="{line}"/>'


def svg(width: float, height: float, parts: list[str]) -> str:
    """A file's content; white behind it, for readers in the dark."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#222">',
            f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def draw_labels(graph: ridurre.DependencyGraph, colours: Colours) -> str:
    """What stands on every tensor after the run on labels."""
    parts, y = [], 12
    for call in graph.trace.calls:
        parts.append(words(12, y + 12, f"{call.name} ({call.kind})"))
        for i, label in enumerate(call.outputs[0].labels.ravel()):
            x = 210 + i * (CELL + 4)
            parts.append(square(x, y, colours.by_label.get(label, FIXED)))
            style = ' text-anchor="middle" font-size="9"'
            parts.append(words(x + CELL / 2, y + 11.5, str(label), style))
        y += CELL + 8
    return svg(360, y + 6, parts)


def draw_kernels(
    graph: ridurre.DependencyGraph, colours: Colours, plan: ridurre.PruningPlan | None = None
) -> str:
    """Every kernel as inputs (downwards) × outputs; what a plan takes is empty.

    Left of it and above it stand the channels that index it.
    """
    parts, x = [], 30
    for layer in graph.model.layers:
        if layer.weights:
            parts.append(words(x, 20, layer.name, ' font-weight="bold"'))
            parts += draw_kernel(x, 50, layer.kernel, colours, plan)
            x += (layer.kernel.shape[-1] + 2) * CELL + 14
    return svg(x, 60 + 7 * CELL + 8, parts)


def draw_kernel(
    x: int, y: int, kernel: keras.Variable, colours: Colours, plan: ridurre.PruningPlan | None
) -> list[str]:
    axes = len(kernel.shape) - 2, len(kernel.shape) - 1
    rows, columns = (colours.along(kernel, axis) for axis in axes)
    removed = plan.removed.get(kernel.path, {}) if plan else {}
    gone = np.zeros(tuple(kernel.shape[axis] for axis in axes), bool)
    gone[removed.get(axes[0], [])] = True
    gone[:, removed.get(axes[1], [])] = True
    parts = [square(x - CELL, y + i * CELL, colour) for i, colour in enumerate(rows)]
    parts += [square(x + j * CELL, y - CELL, colour) for j, colour in enumerate(columns)]
    for i, j in np.ndindex(*gone.shape):
        parts.append(square(x + j * CELL + 4, y + i * CELL + 4, GONE if gone[i, j] else BODY))
    return parts


def main(folder: Path = FOLDER) -> None:
    """Write all pictures."""
    graph = ridurre.DependencyGraph(network())
    colours = Colours(graph)
    pictures = {
        "labels": draw_labels(graph, colours),
        "groups": draw_kernels(graph, colours),
        "plan": draw_kernels(graph, colours, graph.get_pruning_plan("stem", idxs=[1, 3])),
    }
    folder.mkdir(exist_ok=True)
    for name, text in pictures.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
