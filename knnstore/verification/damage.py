"""Descriptions of damaged files, and what each can be rebuilt from."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from knnstore.datastore.arrays import METADATA_FILE, open_array
from knnstore.datastore.commits import chunk_number
from knnstore.datastore.layout import DOCUMENTS_FILE, INDEX, LAYOUT_TASK, LISTS
from knnstore.datastore.parts import PARTS
from knnstore.datastore.segment import ARRAYS, DOCUMENTS_TASK, SAMPLES_TASK
from knnstore.errors import CorruptStoreError

RepairSource = Literal["checksum", "plan", "keys", "copy or LM", "copy or corpus", "LM", "corpus", "values", "nothing"]
"""What a damaged file can be rebuilt from.

``checksum``: a single bit is wrong, which the file's own checksum identifies. ``plan``: the records beside the file.
``keys``: the segments, as by ``index``. ``copy``: the same rows in list order, in the index. ``LM``, ``corpus``: those
that the store was made with. ``values``: the stored tokens, as by ``suffixes``.
"""

_TASK_SOURCES: dict[str, RepairSource] = {DOCUMENTS_TASK: "corpus", LAYOUT_TASK: "copy or LM", SAMPLES_TASK: "LM"}


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged file: its ``path`` in the store, the ``problem`` in words, and what it can be rebuilt from.

    ``chunk`` and ``rows`` ``[begin, end)`` if it is a chunk of an array (rows of the segment, or in list order).
    """

    path: str
    problem: str
    source: RepairSource
    chunk: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def rebuildable(self) -> bool:
        """Return whether the file can be rebuilt."""
        return self.source != "nothing"


def describe(root: Path, path: Path, problem: str, dropped: tuple[str, ...] = ()) -> Damage:
    """Return the description of a damaged file.

    ``dropped``: the segments whose keys are stored only in the index's lists.
    """
    inside = path.relative_to(root).as_posix()
    chunk = chunk_number(inside)
    source = source_of(inside)
    if source == "keys" and needed_keys(inside, dropped):
        source = "copy or LM"
    return Damage(inside, problem, source, chunk, None if chunk is None else _rows(path, chunk))


def needed_keys(path: str, dropped: tuple[str, ...]) -> set[str]:
    """Return the dropped segments whose keys are needed to rebuild the index file at this path."""
    parts = PurePosixPath(path).parts
    if parts[0] != INDEX:
        return set()
    return {parts[3]} & set(dropped) if parts[2:3] == (LISTS,) and len(parts) > 3 else set(dropped)


def source_of(path: str) -> RepairSource:
    """Return what a file at this path in a store can be rebuilt from."""
    parts = PurePosixPath(path).parts
    kinds = [kind for kind in PARTS if kind.below(parts)]
    if source := next((kind.source for kind in kinds if kind.source), None):
        return source
    return _source_in_segment(parts[2:]) if kinds else "nothing"


def _source_in_segment(inside: tuple[str, ...]) -> RepairSource:
    match inside:
        case ("commits", *_, record):
            task = record.removesuffix(".json")
            return _TASK_SOURCES.get(LAYOUT_TASK if record.startswith("keys-") else task, "nothing")
        case (*_, file) if file == METADATA_FILE:
            return "plan"
        case ("values", *_):
            return "copy or corpus"
        case (name, *_) if name not in ("sources", "source_offsets"):
            task = DOCUMENTS_TASK if name == DOCUMENTS_FILE else ARRAYS[name].task if name in ARRAYS else ""
            return _TASK_SOURCES.get(task, "nothing")
    return "nothing"


def _rows(path: Path, chunk: int) -> tuple[int, int] | None:
    folder = next(parent.parent for parent in path.parents if parent.name == "c")
    try:
        form = open_array(folder)
    except CorruptStoreError:
        return None
    begin = chunk * form.chunk_rows
    return begin, min(begin + form.chunk_rows, form.shape[0])
