"""ridurre: give it a Keras model, get a smaller one that computes the same without what it lost."""

from ridurre import testing
from ridurre.cut import prune_batchnorm, prune_conv, prune_related_conv
from ridurre.dependency import DependencyGraph
from ridurre.errors import RidurreError, RidurreWarning
from ridurre.graph import Group, Rule, register_rule, unregister_rule
from ridurre.measure import Complexity, measure_latency, model_complexity
from ridurre.methods import KMeansFilterPruning, RandomFilterPruning
from ridurre.plan import PruningPlan
from ridurre.pruning import BasePruning
from ridurre.recovery import recover
from ridurre.surgery import apply
from ridurre.verification import verify

__version__ = "0.1.0"

__all__ = [
    "BasePruning",
    "Complexity",
    "DependencyGraph",
    "Group",
    "KMeansFilterPruning",
    "PruningPlan",
    "RandomFilterPruning",
    "RidurreError",
    "RidurreWarning",
    "Rule",
    "apply",
    "measure_latency",
    "model_complexity",
    "prune_batchnorm",
    "prune_conv",
    "prune_related_conv",
    "recover",
    "register_rule",
    "testing",
    "unregister_rule",
    "verify",
]
