"""What hangs together: channel labels, rules, groups."""

from ridurre.graph.channels import ChannelGraph
from ridurre.graph.groups import Group, Member
from ridurre.graph.labels import Labels, LabelSpace, Reason, Value, along
from ridurre.graph.rules import Call, Kept, Rule, Work, register_rule, unregister_rule

__all__ = [
    "Call",
    "ChannelGraph",
    "Group",
    "Kept",
    "LabelSpace",
    "Labels",
    "Member",
    "Reason",
    "Rule",
    "Value",
    "Work",
    "along",
    "register_rule",
    "unregister_rule",
]
