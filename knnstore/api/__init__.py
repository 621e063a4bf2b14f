"""The Python API: make a store, search it, change it, and attach it to a language model."""

from knnstore.api.attaching import attach
from knnstore.api.store import Neighbour, Store, open
from knnstore.attachment.attach import Attachment
from knnstore.attribution import Attribution
from knnstore.generation import Generation
from knnstore.lm.streaming import Sampling
from knnstore.mixing.setting import Setting
from knnstore.neighbours import Neighbours
from knnstore.operations.compact import compact
from knnstore.operations.export import export
from knnstore.operations.import_ import import_
from knnstore.operations.index import index
from knnstore.operations.info import info
from knnstore.operations.ingest import ingest
from knnstore.operations.log import log
from knnstore.operations.merge import merge
from knnstore.operations.remove import remove
from knnstore.operations.repair import repair
from knnstore.operations.restore import restore
from knnstore.operations.score import score
from knnstore.operations.stores import stores
from knnstore.operations.subset import subset
from knnstore.operations.suffixes import suffixes
from knnstore.operations.tune import tune
from knnstore.operations.verify import verify

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
    "compact",
    "export",
    "import_",
    "index",
    "info",
    "ingest",
    "log",
    "merge",
    "open",
    "remove",
    "repair",
    "restore",
    "score",
    "stores",
    "subset",
    "suffixes",
    "tune",
    "verify",
]
