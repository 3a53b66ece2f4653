"""A report as one HTML page: a template, a style sheet, a script, the facts and the charts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ridurre.optional import load
from ridurre.reports import charts, figures
from ridurre.reports.facts import STATUSES, Facts, plain

_FOLDER = Path(__file__).parent


def check_installed() -> None:
    """Raise `RequestError` where a package that pages need is not installed."""
    for package in ("jinja2", "altair", "igraph", "vl_convert"):
        load(package, "HTML reports", "A report as .md or .json does without.")


def render(facts: Facts) -> str:
    """The page; raises `RequestError` where a package that it needs is not installed."""
    jinja2 = load("jinja2", "HTML reports", "to_markdown and to_dict do without.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts: dict[str, Any] = {
        "facts": facts,
        "figures": figures,
        "statuses": STATUSES,
        "rows": figures.rows(facts),
        "layers": figures.listed(facts),
        "charts": plain(charts.charts(facts)),
        "bundle": charts.javascript(),
        "style": (_FOLDER / "page.css").read_text("utf-8"),
        "script": (_FOLDER / "page.js").read_text("utf-8"),
    }
    return environment.get_template("page.html").render(parts)
