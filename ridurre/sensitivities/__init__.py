"""What cutting each part of a model alone costs, without retraining."""

from ridurre.sensitivities.record import Point, Sensitivity
from ridurre.sensitivities.run import sensitivity

__all__ = ["Point", "Sensitivity", "sensitivity"]
