"""Criteria: what matters. They score units of groups of coupled channels, or single weights."""

from ridurre.criteria.activations import APoZ, MeanActivation, WeightedVariance
from ridurre.criteria.base import CRITERIA, Criterion, Setting, WeightCriterion, get, scores_weights
from ridurre.criteria.flow import Movement, SynFlow
from ridurre.criteria.gradients import GateTaylor, GroupFisher, Jacobian, OutputTaylor, Taylor
from ridurre.criteria.reconstruction import BlockOBS, Wanda
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
    "Movement",
    "OutputTaylor",
    "Random",
    "Setting",
    "SynFlow",
    "Taylor",
    "Wanda",
    "WeightCriterion",
    "WeightedVariance",
    "get",
    "scores_weights",
]
