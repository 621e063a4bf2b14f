"""Continue unfinished parts of a writer that seemed dead. In object storage it may only be frozen and write again.

A writer of a later epoch therefore continues in its own server-side copy and never writes under the other writer's
names. A commit record asserts that its files are complete, so records are copied first: the files of every copied
record exist by then. A folder's plan is copied last, so a folder with a plan is a complete copy.
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


def own_segment(edit: Edit, earlier: Path | None) -> Path:
    """Return the folder in which this writer continues the unfinished segment, or a new folder if it is None.

    The unfinished segment belongs to no state.
    """
    if earlier is None:
        return segment_root(edit.root, next_segment(edit.root, edit.epoch))
    if is_of_epoch(earlier, edit.epoch):
        return earlier
    for path in list(unfinished(edit.root)):
        if not (path / SEGMENT_PLAN).is_file() and path != earlier:  # a copy that was cut short
            remove_tree(path)
    own = own_segment(edit, None)
    copy_folder(earlier, own, last=SEGMENT_PLAN)
    remove_tree(earlier)
    return own


def copy_folder(source: Path, target: Path, *, last: str) -> None:
    """Copy the objects below ``source`` that ``target`` lacks; the one named ``last`` is copied last.

    No runs are copied into a target that is already complete, since it may have runs of another layout.
    """
    files = files_of(source)
    existing = {path.relative_to(target) for path, *_ in files.entries(target)}
    wanted = [
        path for path, *_ in files.entries(source) if path != source / last and path.relative_to(source) not in existing
    ]
    paths = [path for path in wanted if Path(last) not in existing or path.relative_to(source).parts[0] != "runs"]
    records = [path for path in paths if path.parent.name == "commits"]
    others = [path for path in paths if path.parent.name != "commits"]

    def copy(path: Path) -> None:
        with suppress(FileNotFoundError):  # the other writer is alive and has just removed it
            files.copy(path, target / path.relative_to(source))

    plan = [] if Path(last) in existing else [source / last]
    for batch in (records, others, plan):
        list(at_once(copy, batch))
