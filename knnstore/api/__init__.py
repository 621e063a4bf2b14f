"""The Python API of ``import knnstore``: open a store, search it, and attach it to a language model."""

from knnstore.api.attaching import attach
from knnstore.api.store import Neighbour, Store, open
from knnstore.attachment import Attachment
from knnstore.attribution import Attribution
from knnstore.generation import Generation
from knnstore.lm.streaming import Sampling
from knnstore.mixing.setting import Setting
from knnstore.neighbours import Neighbours

__all__ = [
    "Attachment",
    "Attribution",
    "Generation",
    "Neighbour",
    "Neighbours",
    "Sampling",
    "Setting",
    "Store",
    "attach",
    "open",
]
