"""Masks from importances, with the names of ShrinkBench.

Blalock, Gonzalez Ortiz, Frankle & Guttag, "What is the State of Neural Network Pruning?", MLSys
2020. ``Strategy(model, inputs, outputs, compression=4).apply()`` gives a new model with zeros;
`Pruning` says what a strategy of your own has to define.
"""

from ridurre.strategies.base import Pruning
from ridurre.strategies.channels import (
    ActivationNormChannelPruning,
    ChannelMasking,
    WeightNormChannelPruning,
)
from ridurre.strategies.helpers import (
    activation_importance,
    channel_norms,
    flatten_importances,
    fraction_mask,
    fraction_threshold,
    importance_masks,
    map_importances,
    threshold_mask,
)
from ridurre.strategies.kinds import LayerPruning, VisionPruning
from ridurre.strategies.magnitude import (
    GlobalMagAct,
    GlobalMagGrad,
    GlobalMagWeight,
    GlobalPruning,
    LayerMagAct,
    LayerMagGrad,
    LayerMagWeight,
    LayerwisePruning,
    RandomPruning,
)
from ridurre.strategies.mixins import ActivationMixin, GradientMixin

__all__ = [
    "ActivationMixin",
    "ActivationNormChannelPruning",
    "ChannelMasking",
    "GlobalMagAct",
    "GlobalMagGrad",
    "GlobalMagWeight",
    "GlobalPruning",
    "GradientMixin",
    "LayerMagAct",
    "LayerMagGrad",
    "LayerMagWeight",
    "LayerPruning",
    "LayerwisePruning",
    "Pruning",
    "RandomPruning",
    "VisionPruning",
    "WeightNormChannelPruning",
    "activation_importance",
    "channel_norms",
    "flatten_importances",
    "fraction_mask",
    "fraction_threshold",
    "importance_masks",
    "map_importances",
    "threshold_mask",
]
