"""ridurre: give it a Keras model, get a smaller one that computes the same without what it lost."""

from ridurre import criteria, plots, schedules, strategies, surgeon, testing
from ridurre.compacting import compact
from ridurre.criteria import Criterion
from ridurre.cut import prune_batchnorm, prune_conv, prune_related_conv
from ridurre.dependency import DependencyGraph
from ridurre.errors import CheckpointError, RidurreError, RidurreWarning
from ridurre.exporting import export
from ridurre.finetune import Distillation, LinearToZero, retraining_rate
from ridurre.graph import Group, Rule, register_rule, unregister_rule
from ridurre.masking import keep_zeros, strip
from ridurre.masks import Masks
from ridurre.measure import Complexity, measure_latency, model_complexity
from ridurre.methods import ChannelPruning, KMeansFilterPruning, RandomFilterPruning
from ridurre.plan import PruningPlan
from ridurre.plots import Recording
from ridurre.pruning import BasePruning
from ridurre.recipes import iterative_prune, prune
from ridurre.recovery import recover
from ridurre.reports import Report, compare
from ridurre.sensitivities import Sensitivity, sensitivity
from ridurre.shrinking import Bins
from ridurre.sparsity import LevelPrune, ThresholdPrune
from ridurre.strategy import ChannelPrune
from ridurre.surgery import apply
from ridurre.targets import ActivationMemory, FileSize, Filters, Latency, MACs, Params, Target
from ridurre.training import (
    BatchNormSparsity,
    GroupSparsity,
    KeepZeros,
    MagnitudePercentage,
    MagnitudeThreshold,
    PruneDuringTraining,
    Recorder,
    RewindPruning,
    SparsityBoard,
    lottery_ticket,
    pruning_callback,
)
from ridurre.verification import verify

__version__ = "0.1.0"

__all__ = [
    "ActivationMemory",
    "BasePruning",
    "BatchNormSparsity",
    "Bins",
    "ChannelPrune",
    "ChannelPruning",
    "CheckpointError",
    "Complexity",
    "Criterion",
    "DependencyGraph",
    "Distillation",
    "FileSize",
    "Filters",
    "Group",
    "GroupSparsity",
    "KMeansFilterPruning",
    "KeepZeros",
    "Latency",
    "LevelPrune",
    "LinearToZero",
    "MACs",
    "MagnitudePercentage",
    "MagnitudeThreshold",
    "Masks",
    "Params",
    "PruneDuringTraining",
    "PruningPlan",
    "RandomFilterPruning",
    "Recorder",
    "Recording",
    "Report",
    "RewindPruning",
    "RidurreError",
    "RidurreWarning",
    "Rule",
    "Sensitivity",
    "SparsityBoard",
    "Target",
    "ThresholdPrune",
    "apply",
    "compact",
    "compare",
    "criteria",
    "export",
    "iterative_prune",
    "keep_zeros",
    "lottery_ticket",
    "measure_latency",
    "model_complexity",
    "plots",
    "prune",
    "prune_batchnorm",
    "prune_conv",
    "prune_related_conv",
    "pruning_callback",
    "recover",
    "register_rule",
    "retraining_rate",
    "schedules",
    "sensitivity",
    "strategies",
    "strip",
    "surgeon",
    "testing",
    "unregister_rule",
    "verify",
]
