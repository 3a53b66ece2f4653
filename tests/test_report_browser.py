"""The page of a report in a real browser: it draws, answers, and is legible everywhere.

Screenshots of the report on a pruned ResNet are left in build/screenshots/.
"""

import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

import ridurre
from ridurre.history import Step
from tests.models import resnet18

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
EVIL = "<img src=x onerror=alert(1)>"
SCRIPT = "<script>alert(1)<"
PHONE = {"width": 375, "height": 800}
DESKTOP = {"width": 1280, "height": 900}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("RIDURRE_REQUIRE_BROWSER"),
    reason="Chromium is not installed; with RIDURRE_REQUIRE_BROWSER=1 this fails",
)

#: Colours as the screen has them, and how bright they are (WCAG 2.2).
CONTRAST = """() => {
    const parse = (c) => [...c.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (e) => {
        for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c[3] > 0) return c;
        }
        return [255, 255, 255, 1];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
        if (!text || !e.checkVisibility({ opacityProperty: true }) || e.closest("script")) continue;
        const style = getComputedStyle(e), svg = e instanceof SVGElement;
        const pair = [light(parse(svg ? style.fill : style.color)), light(ground(e))];
        const [low, high] = pair.sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        found.push({ text, contrast, size: parseFloat(style.fontSize) });
    }
    return found;
}"""


def net(name: str = "net", head: str = "head") -> keras.Model:
    inputs = x = keras.Input((4, 4, 2))
    for i, width in enumerate((5, 7, 3)):
        y = L.ReLU(name=f"relu{i}")(L.Conv2D(width, 3, padding="same", name=f"conv{i}")(x))
        x = L.Conv2D(6, 1, name=f"out{i}")(y)
        x = L.Add(name=f"sum{i}")([x, L.Conv2D(6, 1, name=f"short{i}")(y)])
    return keras.Model(inputs, L.Dense(3, name=head)(L.GlobalAveragePooling2D()(x)), name=name)


def nested() -> keras.Model:
    """A layer whose name, behind that of the model that it is in, ends a script."""
    inputs = keras.Input((4, 4, 2))
    inner = keras.Sequential([keras.Input((4, 4, 2)), L.Conv2D(5, 3, name="script>")], name=SCRIPT)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(inner(inputs))), name="outer")


def rounds(model: keras.Model, count: int = 4) -> list[Step]:
    size = ridurre.model_complexity(model)
    left = 1 - 0.12 * np.arange(1, count + 1)
    return [
        Step(
            i, 0.1, 20, int(size.parameters * f), int(size.macs * f), 0.1, i, 15.0,
            accuracy=0.93 - 0.01 * i, accuracy_before_finetuning=0.9 - 0.05 * i,
            phases={"cut": 0.5, "compile": 0.1, "finetune": 11.0, "evaluate": 2.0},
            stopped="target" if i == count - 1 else None,
        )
        for i, f in enumerate(left)
    ]  # fmt: skip


def report_on(model: keras.Model, **options) -> ridurre.Report:
    plan = ridurre.ChannelPrune(0.4, **options).plan(model)
    return ridurre.compare(model, plan.exec(), plan=plan, history=rounds(model), latency=False)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "RIDURRE_REQUIRE_BROWSER is set and there is no Chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def bare() -> ridurre.Report:
    """A report that knows next to nothing."""
    facts = report_on(net()).to_dict()
    facts |= {"layers": [], "nodes": [], "groups": [], "history": [], "notes": ["a < b"]}
    return ridurre.Report.from_dict(facts)


PAGES = {
    "net": lambda: report_on(net()),
    "resnet": lambda: report_on(resnet18(10)),
    "evil": lambda: report_on(net(EVIL, "<svg onload=alert(1)> & `|`")),
    "partly": lambda: report_on(net(), protect="conv1"),
    "script": lambda: report_on(nested()),
    "bare": bare,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where pages are, each written when it is first asked for."""
    folder = tmp_path_factory.mktemp("pages")

    def file(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            PAGES[name]().save(path)
        return path

    return file


@pytest.fixture
def visit(browser, files):
    """Opens a page and waits until it is drawn; at the end nothing may have gone wrong on it."""
    wrong, contexts = [], []

    def go(name: str, **options):
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
        page.on("dialog", lambda d: (wrong.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or wrong.append(r.url))
        page.goto(files(name).as_uri())
        page.wait_for_selector("html[data-ready=yes]", timeout=20_000)
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def shown_rows(page) -> list[str]:
    return [r.inner_text() for r in page.locator("#layer-table tbody tr:visible .name").all()]


def test_the_page_draws_all_its_charts(visit):
    page = visit("net")
    for name in ("accuracy", "sizes", "times", "network", "importances"):
        marks = page.locator(f"[data-chart={name}] svg .mark-line path, "
                             f"[data-chart={name}] svg .mark-rect path, "
                             f"[data-chart={name}] svg .mark-symbol path")  # fmt: skip
        assert marks.count() > 3, name
        assert page.locator(f"[data-chart={name}] svg").bounding_box()["width"] > 200
    assert page.locator(".tile .change").first.inner_text().startswith("−")


def test_a_group_without_a_cut_has_no_line(visit):
    page = visit("partly")
    rules = page.locator("[data-chart=importances] svg .mark-rule.role-mark line")
    widths = rules.evaluate_all("all => all.map((r) => Number(r.getAttribute('stroke-width')))")
    assert sorted(widths) == [0, *[2] * 5]


def test_the_picture_of_a_small_network_is_small(visit):
    heights = [
        visit(name).locator("[data-chart=network] svg").bounding_box()["height"]
        for name in ("script", "net", "resnet")
    ]
    assert heights == sorted(heights)
    assert heights[0] < 300
    assert 500 < heights[2] < 700


def test_the_filters_of_the_table_work(visit):
    page = visit("net")
    everything = shown_rows(page)
    assert everything[0] == "conv0"
    page.fill("#layer-search", "CONV")
    assert shown_rows(page) == ["conv0", "conv1", "conv2"]
    assert page.inner_text("#layer-count") == f"3 of {len(everything)} layers"
    page.fill("#layer-search", "")
    page.select_option("#layer-status", "fixed")
    assert shown_rows(page) == ["head"]
    assert "output of the model" in page.inner_text("#layer-table tbody tr:visible")


def test_the_table_sorts_by_any_column(visit):
    page = visit("net")
    page.click("#layer-table th:has-text('parameters') >> nth=0")
    sizes = page.eval_on_selector_all(
        "#layer-table tbody tr", "rows => rows.map(r => Number(r.cells[2].dataset.sort))"
    )
    assert sizes == sorted(sizes, reverse=True)
    page.click("#layer-table th:has-text('layer') >> nth=0")
    page.click("#layer-table th:has-text('layer') >> nth=0")
    assert shown_rows(page)[0] == "conv0"


def test_hovering_over_a_node_tells_about_it(visit):
    page = visit("net")
    page.locator("[data-chart=network] .mark-symbol path").first.hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    text = tip.inner_text()
    for part in ("conv0", "Conv2D", "5 → 3", "40%"):
        assert part in text


def test_hovering_over_a_bar_tells_how_many_channels_it_has(visit):
    page = visit("net")
    page.locator("[data-chart=importances] .mark-rect path").first.hover()
    page.locator("#vg-tooltip-element.visible", has_text="units").wait_for()


def test_the_network_can_be_searched_coloured_and_zoomed(visit):
    page = visit("net")
    nodes = page.locator("[data-chart=network] .mark-symbol path")

    def each(attribute: str) -> list[str]:
        return nodes.evaluate_all(f"all => all.map(n => n.getAttribute('{attribute}'))")

    page.fill("#node-search", "sum")
    page.get_by_text("3 found").wait_for()
    assert sum(float(w) > 0 for w in each("stroke-width")) == 3
    by_group = each("fill")
    assert len(set(by_group)) == 7  # six groups of channels, and none
    page.click("text=by what was cut")
    page.locator("#cut-legend").wait_for()
    assert len(set(each("fill"))) < len(set(by_group))
    before = each("transform")
    page.click("#zoom-in")
    page.wait_for_function(
        "b => document.querySelector('[data-chart=network] .mark-symbol path')"
        ".getAttribute('transform') !== b",
        arg=before[0],
    )
    page.click("#zoom-all")
    page.click("#zoom-out")


def test_the_groups_can_be_searched(visit):
    page = visit("net")
    cells = page.locator("[data-chart=importances] svg .cell > g")
    assert cells.count() == 6
    page.fill("#group-search", "conv1")
    page.get_by_text("1 of 6 groups").wait_for()
    page.wait_for_function(
        "document.querySelectorAll('[data-chart=importances] svg .cell > g').length === 1"
    )
    page.fill("#group-search", "no such layer")
    page.get_by_text("0 of 6 groups").wait_for()


def test_names_from_a_model_are_text_and_nothing_else(visit):
    page = visit("evil")
    assert page.inner_text("h1") == EVIL
    assert page.title() == f"Pruning report: {EVIL}"
    assert page.locator("img").count() == 0
    assert page.locator("svg[onload]").count() == 0
    page.fill("#node-search", "<svg")
    page.get_by_text("1 found").wait_for()
    page.locator("[data-chart=network] .mark-symbol path").last.hover()
    tip = page.locator("#vg-tooltip-element.visible", has_text="<svg onload=alert(1)>")
    tip.wait_for()
    assert tip.locator("svg, img").count() == 0


def test_a_layer_called_like_a_script_is_text(visit):
    page = visit("script")
    name = "<script>alert(1)</script>"
    assert shown_rows(page)[0] == name
    page.fill("#node-search", name)
    page.get_by_text("1 found").wait_for()
    page.locator("[data-chart=network] .mark-symbol path").nth(1).hover()
    page.locator("#vg-tooltip-element.visible", has_text=name).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everything_is_legible(visit, scheme, viewport):
    page = visit("resnet", color_scheme=scheme, viewport=viewport)
    texts = page.evaluate(CONTRAST)
    assert len(texts) > 200
    assert [t for t in texts if t["contrast"] < 4.5] == []
    assert [t for t in texts if t["size"] < 12] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 128) == (scheme == "dark")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = f"{'phone' if viewport is PHONE else 'desktop'}_{scheme}.png"
    page.screenshot(path=SCREENSHOTS / name, full_page=True)
    assert (SCREENSHOTS / name).stat().st_size > 50_000


def test_the_page_follows_the_screen_when_it_turns_dark(visit):
    page = visit("net", color_scheme="light")
    label = "[data-chart=sizes] .role-axis-label text"
    before = page.locator(label).first.get_attribute("fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "([s, b]) => document.querySelector(s)?.getAttribute('fill') !== b", arg=[label, before]
    )


def test_a_report_without_charts_is_a_page_too(visit):
    page = visit("bare")
    assert page.locator("section").count() == 1
    assert "a < b" in page.inner_text(".notes")
