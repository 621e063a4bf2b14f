"""The index folder that a writer may write in: of its own epoch, with what earlier writers have left of the same plan.

See ``datastore.adopting``. An index that is published is copied too before lists are added to it, by the service.
"""

from knnstore.datastore.adopting import copy_folder
from knnstore.datastore.store import Datastore, index_root
from knnstore.datastore.sweeping import remove_tree, unpublished_indexes
from knnstore.index.plan import PLAN_FILE, IndexFolder, new_index
from knnstore.objects.path import ObjectPath


def own_index(store: Datastore, folder: IndexFolder) -> IndexFolder:
    """The folder in which this writer, who holds the store, may go on with an index that is published or is to be."""
    own = new_index(store.root, folder.plan, store.manifest.epoch)
    if not isinstance(store.root, ObjectPath):
        return folder
    if own.root != folder.root:
        copy_folder(folder.root, own.root, last=PLAN_FILE)
    elif not (own.root / PLAN_FILE).is_file():
        _adopt(store, own)
    return own


def _adopt(store: Datastore, own: IndexFolder) -> None:
    """Copy what a writer of an earlier epoch left of the same plan, which no state has ever had."""
    for epoch in range((store.manifest.epoch or 0) - 1, -1, -1):
        name = new_index(store.root, own.plan, epoch or None).name
        begun = index_root(store.root, name)
        if begun in unpublished_indexes(store.root) and (begun / PLAN_FILE).is_file():
            copy_folder(begun, own.root, last=PLAN_FILE)
            remove_tree(begun)
            return
