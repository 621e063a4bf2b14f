"""The index folder of a writer: of its own epoch, with what earlier writers left of the same plan.

See ``datastore.adopting``. A published index is copied too, on the server, before lists are added to it.
"""

from knnstore.datastore.adopting import copy_folder
from knnstore.datastore.edits import Edit
from knnstore.datastore.layout import INDEX_PLAN, index_root
from knnstore.datastore.sweeping import remove_tree, unpublished_indexes
from knnstore.indexes.plan import IndexFolder, Plan, new_index


def own_index(edit: Edit, folder: IndexFolder[Plan]) -> IndexFolder[Plan]:
    """Return the folder in which this writer may continue an index, whether it has been published or not."""
    own = new_index(edit.root, folder.plan, edit.epoch)
    if not edit.files.leases:
        return folder
    if own.root != folder.root:
        copy_folder(folder.root, own.root, last=INDEX_PLAN)
    elif not (own.root / INDEX_PLAN).is_file():
        _adopt(edit, own)
    return own


def _adopt(edit: Edit, own: IndexFolder[Plan]) -> None:
    """Copy what a writer of an earlier epoch left of the same plan, if it was never part of a state."""
    for epoch in range((edit.epoch or 0) - 1, -1, -1):
        name = new_index(edit.root, own.plan, epoch or None).name
        unfinished = index_root(edit.root, name)
        if unfinished in unpublished_indexes(edit.root) and (unfinished / INDEX_PLAN).is_file():
            copy_folder(unfinished, own.root, last=INDEX_PLAN)
            remove_tree(unfinished)
            return
