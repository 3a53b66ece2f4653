"""The rules, one file per family of layers; importing this package fills the table."""

from ridurre.graph.rules import (
    activation,
    applications,
    convolution,
    core,
    merging,
    normalization,
    operations,
    pooling,
    reshaping,
    slicing,
)
from ridurre.graph.rules.base import (
    BARRIER,
    Call,
    Kept,
    Rule,
    Work,
    register_rule,
    rule_for,
    rules,
    unregister_rule,
)

__all__ = [
    "BARRIER",
    "Call",
    "Kept",
    "Rule",
    "Work",
    "activation",
    "applications",
    "convolution",
    "core",
    "merging",
    "normalization",
    "operations",
    "pooling",
    "register_rule",
    "reshaping",
    "rule_for",
    "rules",
    "slicing",
    "unregister_rule",
]
