"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from typing import Any

from ridurre.errors import RequestError

#: What a package is called by pip, where that is something else.
_DISTRIBUTIONS = {"vl_convert": "vl-convert-python", "ai_edge_litert": "ai-edge-litert"}


def load(package: str, purpose: str, instead: str = "") -> Any:
    """A package that may not be installed.

    Args:
        package: what to import; its first part is what to install.
        purpose: what needs it, the beginning of a sentence in the plural.
        instead: a sentence on how to do without.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        name = _DISTRIBUTIONS.get(name, name)
        raise RequestError(
            f"{purpose} need {name}, which is not installed: pip install {name}. {instead}".strip()
        ) from error
