"""What happens while `model.fit` runs: sparse training before a cut, and pruning single weights."""

from ridurre.training.board import SparsityBoard
from ridurre.training.by_name import pruning_callback
from ridurre.training.magnitude import MagnitudePercentage, MagnitudeThreshold
from ridurre.training.masked import KeepZeros, PruneDuringTraining
from ridurre.training.recorder import Recorder
from ridurre.training.regularisers import BatchNormSparsity, GroupSparsity
from ridurre.training.rewinding import RewindPruning
from ridurre.training.ticket import lottery_ticket

__all__ = [
    "BatchNormSparsity",
    "GroupSparsity",
    "KeepZeros",
    "MagnitudePercentage",
    "MagnitudeThreshold",
    "PruneDuringTraining",
    "Recorder",
    "RewindPruning",
    "SparsityBoard",
    "lottery_ticket",
    "pruning_callback",
]
