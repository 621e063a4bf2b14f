"""Taking up what a writer has left that seemed dead: in object storage it may only be frozen, and go on writing there.

So a writer of a later epoch goes on in a copy of its own, which the service makes, and leaves the other's names alone.
A record says of files that are written already, so records are copied first, and a folder's plan last: a folder with
its plan is a whole copy.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from knnstore.datastore.layout import SEGMENT_PLAN, segment_root
from knnstore.datastore.sweeping import is_of_epoch, next_segment, remove_tree, unfinished
from knnstore.files import at_once, files_of

if TYPE_CHECKING:
    from knnstore.datastore.edits import Edit


def own_segment(edit: Edit, begun: Path | None) -> Path:
    """The folder in which this writer goes on with the segment that was ``begun``, or begins a new one if that is None.

    The segment belongs to no state.
    """
    if begun is None:
        return segment_root(edit.root, next_segment(edit.root, edit.epoch))
    if is_of_epoch(begun, edit.epoch):
        return begun
    for path in list(unfinished(edit.root)):
        if not (path / SEGMENT_PLAN).is_file() and path != begun:  # a copy that was cut short
            remove_tree(path)
    own = own_segment(edit, None)
    copy_folder(begun, own, last=SEGMENT_PLAN)
    remove_tree(begun)
    return own


def copy_folder(source: Path, target: Path, *, last: str) -> None:
    """Copy the objects below ``source`` that ``target`` lacks, the one called ``last`` after the others.

    Into a target that is whole no more runs are copied: it may have some of another layout.
    """
    files = files_of(source)
    there = {path.relative_to(target) for path, *_ in files.entries(target)}
    wanted = [
        path for path, *_ in files.entries(source) if path != source / last and path.relative_to(source) not in there
    ]
    paths = [path for path in wanted if Path(last) not in there or path.relative_to(source).parts[0] != "runs"]
    records = [path for path in paths if path.parent.name == "commits"]
    others = [path for path in paths if path.parent.name != "commits"]

    def copy(path: Path) -> None:
        with suppress(FileNotFoundError):  # the other writer isn't dead, and has just removed it
            files.copy(path, target / path.relative_to(source))

    plan = [] if Path(last) in there else [source / last]
    for some in (records, others, plan):
        list(at_once(copy, some))
