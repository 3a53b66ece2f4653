"""Criteria: what matters. Every one scores the units of groups of coupled channels."""

from ridurre.criteria.activations import APoZ, MeanActivation, WeightedVariance
from ridurre.criteria.base import CRITERIA, Criterion, Setting, get
from ridurre.criteria.gradients import GateTaylor, GroupFisher, Jacobian, OutputTaylor, Taylor
from ridurre.criteria.reconstruction import BlockOBS
from ridurre.criteria.similarity import FPGM, CosineRedundancy, KMeansRedundancy
from ridurre.criteria.weights import LAMP, BatchNormScale, Magnitude, Random

__all__ = [
    "CRITERIA",
    "FPGM",
    "LAMP",
    "APoZ",
    "BatchNormScale",
    "BlockOBS",
    "CosineRedundancy",
    "Criterion",
    "GateTaylor",
    "GroupFisher",
    "Jacobian",
    "KMeansRedundancy",
    "Magnitude",
    "MeanActivation",
    "OutputTaylor",
    "Random",
    "Setting",
    "Taylor",
    "WeightedVariance",
    "get",
]
