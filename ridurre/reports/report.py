"""The report that users hold: facts, and the forms that they can take."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridurre.errors import RequestError
from ridurre.files import write_text
from ridurre.reports import figures, html, markdown
from ridurre.reports.facts import Facts, read_facts
from ridurre.tables import aligned


@dataclass(frozen=True)
class Report(Facts):
    """Two models next to each other, made by `ridurre.compare` or by ``pruning.report``.

    ``print(report)`` gives the short form; `to_markdown`, `to_html` and `to_dict` give all of it.
    For the attributes see `ridurre.reports.facts.Facts`.
    """

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_dict` wrote.

        Raises:
            RequestError: the data are something else.
        """
        return cls(**read_facts(data))

    def to_markdown(self) -> str:
        """The whole report as Markdown, with names that are not taken for markup."""
        return markdown.render(self)

    def to_html(self) -> str:
        """The whole report as one HTML page that needs no network.

        Raises:
            RequestError: jinja2, altair, igraph or vl-convert-python is not installed
                (``pip install ridurre[report]``).
        """
        return html.render(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report, whole or not at all; the ending says as what.

        Args:
            path: ends in ``.html``, ``.md`` or ``.json``.

        Raises:
            RequestError: another ending, or what `to_html` needs is not installed.
        """
        forms = {".html": self.to_html, ".md": self.to_markdown, ".json": self._to_json}
        form = forms.get(Path(path).suffix.lower())
        if form is None:
            raise RequestError(
                f"Expected a path that ends in {', '.join(forms)}. Received: {os.fspath(path)!r}."
            )
        write_text(path, form())

    def __str__(self) -> str:
        head = ("", "before", "after", "change")
        cells = [(r.label, r.before, r.after, r.change) for r in figures.rows(self)]
        return "\n".join([aligned([head, *cells], left=1), *self._remarks()])

    def __repr__(self) -> str:
        sizes = (self.original.parameters, self.pruned.parameters)
        return f"Report({self.original.name!r}: {figures.arrow(sizes)} parameters)"

    def _remarks(self) -> list[str]:
        """What a person should know besides the numbers."""
        counts = {
            what: sum(x.status == status for x in self.layers)
            for status, what in (
                ("cut", "lost channels"),
                ("grown", "gained channels"),
                ("left", "could have and were left alone"),
                ("fixed", "cannot lose any"),
            )
        }
        said = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        return [*([f"layers: {said}"] if said else []), *self.notes]

    def _to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
