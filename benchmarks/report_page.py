"""How fast the page of a report is made, how large it is, and how fast it opens in Chromium.

    python benchmarks/report_page.py

Opening ends when all charts are drawn, which is long after the first text is there. Goal: under
2 seconds for a model of 800 layers.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import here_and_now, say, table, write

import keras  # isort: skip - `common` quietens it
from playwright.sync_api import Browser, sync_playwright

import ridurre

L = keras.layers
GOAL = 2.0


def residual(layers: int) -> keras.Model:
    """Blocks of seven layers; every second convolution writes into one stream."""
    inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(16, 3, padding="same")(inputs)
    for block in range(layers // 7):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(x)))
        y = L.BatchNormalization()(L.Conv2D(16, 3, padding="same")(y))
        x = L.ReLU(name=f"block{block}_end")(L.Add()([x, y]))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def chain(layers: int) -> keras.Model:
    inputs = x = keras.Input((32, 32, 3))
    for _ in range(layers // 2):
        x = L.ReLU()(L.Conv2D(8, 3, padding="same")(x))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "residual, 800 layers": lambda: residual(800),
    "chain, 800 layers": lambda: chain(800),
    "ResNet50": lambda: keras.applications.ResNet50(weights=None),
    "DenseNet201": lambda: keras.applications.DenseNet201(weights=None),
}


def write_page(model: keras.Model, path: Path) -> tuple[float, float]:
    """Seconds that it takes to compare a model with a pruned copy, and to write the page."""
    plan = ridurre.ChannelPrune(0.4).plan(model)
    pruned = plan.exec()
    start = time.perf_counter()
    report = ridurre.compare(model, pruned, plan=plan, latency=False)
    between = time.perf_counter()
    report.save(path)
    return between - start, time.perf_counter() - between


def opening(browser: Browser, path: Path) -> tuple[float, float]:
    """Seconds until the text of a page can be read, and until all is drawn."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    start = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("h1")
    text = time.perf_counter() - start
    page.wait_for_selector("html[data-ready=yes]", timeout=60_000)
    done = time.perf_counter() - start
    page.close()
    return text, done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, build in MODELS.items():
            path, model = Path(folder) / "report.html", build()
            compared, written = write_page(model, path)
            times = [opening(browser, path) for _ in range(options.repeats + 1)][1:]
            text, done = (statistics.median(t) for t in zip(*times, strict=True))
            worst = max(t[1] for t in times)
            say(f"{name}: {done:.2f} s")
            cells = (f"{x:.2f}" for x in (compared, written, text, done, worst))
            size = f"{path.stat().st_size / 1e6:.2f}"
            rows.append((name, len(model.layers), size, *cells))
        browser.close()
    head = (
        "model", "layers", "page [MB]", "compare [s]", "write [s]", "open: text [s]",
        "open: all charts [s]", "slowest [s]",
    )  # fmt: skip
    words = f"Medians of {options.repeats} openings. Goal: all charts in under {GOAL:g} s."
    write("report_page", "The page of a report", here_and_now(), words, table(head, rows))


if __name__ == "__main__":
    main()
