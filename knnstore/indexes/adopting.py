"""The index folder that a writer may write in: of its own epoch, with what earlier writers have left of the same plan.

See ``datastore.adopting``. An index that is published is copied too before lists are added to it, by the service.
"""

from knnstore.datastore.adopting import copy_folder
from knnstore.datastore.edits import Edit
from knnstore.datastore.layout import INDEX_PLAN, index_root
from knnstore.datastore.sweeping import remove_tree, unpublished_indexes
from knnstore.indexes.plan import IndexFolder, Plan, new_index


def own_index(edit: Edit, folder: IndexFolder[Plan]) -> IndexFolder[Plan]:
    """The folder in which this writer may go on with an index that is published or is to be."""
    own = new_index(edit.root, folder.plan, edit.epoch)
    if not edit.files.leases:
        return folder
    if own.root != folder.root:
        copy_folder(folder.root, own.root, last=INDEX_PLAN)
    elif not (own.root / INDEX_PLAN).is_file():
        _adopt(edit, own)
    return own


def _adopt(edit: Edit, own: IndexFolder[Plan]) -> None:
    """Copy what a writer of an earlier epoch left of the same plan, which no state has ever had."""
    for epoch in range((edit.epoch or 0) - 1, -1, -1):
        name = new_index(edit.root, own.plan, epoch or None).name
        begun = index_root(edit.root, name)
        if begun in unpublished_indexes(edit.root) and (begun / INDEX_PLAN).is_file():
            copy_folder(begun, own.root, last=INDEX_PLAN)
            remove_tree(begun)
            return
