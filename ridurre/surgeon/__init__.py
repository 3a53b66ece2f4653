"""Network surgery under the names of kerassurgeon: delete, insert, replace layers; delete channels.

The interface is that of the package kerassurgeon 0.2.0 (Ben Whetton, 2018-2020), for Keras 3. What
happens underneath is this package's: channels go by a `ridurre.PruningPlan`, a new model comes
back, and the user's is never touched.
"""

from ridurre.surgeon import identify
from ridurre.surgeon.operations import delete_channels, delete_layer, insert_layer, replace_layer
from ridurre.surgeon.operator import Surgeon

__all__ = [
    "Surgeon",
    "delete_channels",
    "delete_layer",
    "identify",
    "insert_layer",
    "replace_layer",
]
