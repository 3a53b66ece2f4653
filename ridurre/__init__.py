"""ridurre: give it a Keras model, get a smaller one that computes the same without what it lost."""

from ridurre import testing
from ridurre.cut import prune_batchnorm, prune_conv, prune_related_conv
from ridurre.dependency import DependencyGraph
from ridurre.errors import CheckpointError, RidurreError, RidurreWarning
from ridurre.finetune import Distillation, LinearToZero, retraining_rate
from ridurre.graph import Group, Rule, register_rule, unregister_rule
from ridurre.measure import Complexity, measure_latency, model_complexity
from ridurre.methods import KMeansFilterPruning, RandomFilterPruning
from ridurre.plan import PruningPlan
from ridurre.pruning import BasePruning
from ridurre.surgery import apply
from ridurre.training import BatchNormSparsity, GroupSparsity
from ridurre.verification import verify

__version__ = "0.1.0"

__all__ = [
    "BasePruning",
    "BatchNormSparsity",
    "CheckpointError",
    "Complexity",
    "DependencyGraph",
    "Distillation",
    "Group",
    "GroupSparsity",
    "KMeansFilterPruning",
    "LinearToZero",
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
    "register_rule",
    "retraining_rate",
    "testing",
    "unregister_rule",
    "verify",
]
