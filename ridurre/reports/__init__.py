"""Reports: what pruning did to a model, as text, Markdown, JSON and one HTML page."""

from ridurre.reports.compare import compare
from ridurre.reports.report import Report

__all__ = ["Report", "compare"]
