"""Everything ridurre raises or warns with.

RidurreError
├── ModelError            the model cannot be analysed or rebuilt
│   └── OpeningError          what a layer's code does cannot be seen
├── RequestError          what was asked for makes no sense for this model
│   ├── UnknownLayerError     no such layer
│   ├── FrozenChannelError    the channel exists and cannot be removed
│   └── NothingToPruneError   there is nothing that could be removed
├── PlanMismatchError     the plan was made for another model
├── CheckpointError       a step cannot be kept on disk, or taken up from there
├── VerificationError     the pruned model does not compute what it should
└── RuleError             a rule contradicts the layer it describes
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RidurreError(Exception):
    """Base class of all errors of this package."""


class ModelError(RidurreError, ValueError):
    """The model cannot be analysed or rebuilt."""


class NotAModelError(ModelError, TypeError):
    """The object is not a Keras model at all."""


class OpeningError(ModelError):
    """What a layer's code does to channels cannot be seen."""


class RequestError(RidurreError, ValueError):
    """What was asked for makes no sense for this model."""


class UnknownLayerError(RequestError):
    """No layer has this name."""


class FrozenChannelError(RequestError):
    """The channel exists and cannot be removed."""


class NothingToPruneError(RequestError):
    """There is nothing that could be removed."""


class PlanMismatchError(RidurreError, ValueError):
    """The plan was made for another model, or was edited by hand."""


class CheckpointError(RidurreError, OSError):
    """A pruning step cannot be kept on disk, or taken up from there."""


class VerificationError(RidurreError, ValueError):
    """The pruned model does not compute what the masked original computes."""


class RuleError(RidurreError, RuntimeError):
    """A rule contradicts the layer or operation that it describes."""


class RidurreWarning(UserWarning):
    """Something a user should know, and that did not stop the work."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A ``Did you mean …?`` sentence, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
