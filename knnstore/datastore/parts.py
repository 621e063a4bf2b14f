"""The kinds of parts of a store: planned folders of arrays with commit records, and what keeps each of them on disk.

A part stays while a needed state uses it, that is the present state, a state that ``restore`` can return to, or one
that a reader has open, or while it belongs to no state yet because it is being made. Sweeps and ``verify`` iterate
over ``PARTS``, to which other kinds of index may add their own; so do ``info``, for the bytes of each, and ``repair``.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from knnstore.datastore.commits import COMMITS_FOLDER, DONE
from knnstore.datastore.history import changes, is_held, within_reach
from knnstore.datastore.layout import (
    DOCUMENTS_FILE,
    INDEX,
    INDEX_PLAN,
    KEYS_RECORDS,
    LAYOUT_TASK,
    LISTS,
    QUANTIZER,
    RUNS,
    SAMPLE,
    SEGMENT_PLAN,
    SEGMENTS,
    SUFFIX_PLAN,
    SUFFIXES,
    index_root,
    segment_root,
)
from knnstore.datastore.manifest import DIGEST_NAME, SEGMENT_NAME, Manifest, load_manifest
from knnstore.files import files_of

SCRATCH = re.compile("parts|append|copy")
"""Folders of a segment that are needed only while it is made."""
_RUNS_OF = re.compile(f"{SEGMENT_NAME.pattern}|{SAMPLE}")
"""Folders of runs: those of a segment's lists, and the training sample of the quantisers."""


class States:
    """The states of the store at ``root``: all ``known`` states, and the ``present`` one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._changes = changes(root)
        self.known = [change.state for change in self._changes]
        self.present = load_manifest(root)

    @cached_property
    def reach(self) -> list[Manifest]:
        """Return the states that a restore can return to."""
        return [change.state for change in within_reach(self._changes)]

    @cached_property
    def held(self) -> list[Manifest]:
        """Return the past states that a reader has open."""
        past = [state for state in self.known if state.state != self.present.state]
        return [state for state in past if is_held(self.root, state.state)]

    @cached_property
    def needed(self) -> list[Manifest]:
        """Return the states whose segments stay."""
        return [self.present, *self.reach, *self.held]

    @cached_property
    def published(self) -> set[str]:
        """Return the names of all segments that any state has had."""
        return {name for state in (*self.known, self.present) for name in state.segments}

    @cached_property
    def gone(self) -> set[str]:
        """Return the names of the published segments that no needed state has."""
        return self.published - {name for state in self.needed for name in state.segments}

    @cached_property
    def indexes(self) -> set[str | None]:
        """Return the names of all indexes that any state has had."""
        return {state.index for state in (*self.known, self.present)}

    def has_index(self, name: str) -> bool:
        """Return whether an index is that of the present or a held state, or belongs to no state yet."""
        needed = {state.index for state in (self.present, *self.held)}
        return name in needed or name not in self.indexes

    def has_keys(self, segment: str) -> bool:
        """Return whether a needed state has the segment's own array of keys, or the segment belongs to no state yet."""
        states = [state for state in self.needed if segment in state.segments]
        return segment not in self.published or any(segment not in (state.dropped or ()) for state in states)

    def is_over(self, segment: str) -> bool:
        """Return whether a segment is gone, or was never published and has been discarded."""
        return segment in self.gone or not (segment in self.published or segment_root(self.root, segment).is_dir())


@dataclass(frozen=True, slots=True)
class PartKind:
    """A kind of part. ``path``: the folder names from the store's root; a pattern matches the part's own name.

    ``is_over``: whether a sweep removes a part, given its own names; ``records`` beside it are removed first.
    ``is_needed``: whether the present state or a restorable one, whose ``segments`` are given, needs it; None: it is
    needed if its own record marks it as complete. ``whole``: the folders that must be complete for a state. ``plan``:
    the name of its plan file, in the nearest enclosing folder that has one. ``temporary``: it belongs to no state.
    ``labels``: what ``info`` calls the bytes of arrays and files in the part, by name; ``*``: of all others.
    ``source``: what ``repair`` rebuilds its files from; None: see the table of a segment's arrays.
    """

    path: tuple[str | re.Pattern[str], ...]
    plan: str
    is_over: Callable[..., bool]
    is_needed: Callable[..., bool] | None
    whole: Callable[[Path, Manifest], Iterable[Path]] = lambda root, state: ()
    records: tuple[str, ...] = ()
    temporary: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    source: Literal["keys", "values"] | None = None

    def folders(self, root: Path) -> Iterator[tuple[Path, list[str]]]:
        """Yield the folders of this kind in the store at ``root``, each with its own names; some may not exist."""
        matches: list[tuple[Path, list[str]]] = [(root, [])]
        for name in self.path:
            if isinstance(name, str):
                matches = [(path / name, names) for path, names in matches]
            else:
                matches = [(path, [*names, path.name]) for above, names in matches for path in folders(above, name)]
        yield from matches

    def below(self, inside: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names within the part of a file at ``inside`` below the store's root; empty if it is elsewhere."""
        matches = len(inside) > len(self.path) and all(map(re.fullmatch, self.path, inside))
        return inside[len(self.path) :] if matches else ()

    def is_leftover(self, root: Path, inside: tuple[str, ...], present: Manifest, segments: Collection[str]) -> bool:
        """Return whether a file at ``inside`` below ``root`` is in a part of this kind that isn't needed."""
        if not self.below(inside):
            return False
        part = inside[: len(self.path)]
        if self.is_needed is None:
            return not is_done(root.joinpath(*part))
        own = (given for name, given in zip(self.path, part, strict=True) if not isinstance(name, str))
        return not self.is_needed(present, segments, *own)


def is_done(part: Path) -> bool:
    """Return whether a part that no state names is complete, by its own record."""
    return (part / COMMITS_FOLDER / f"{DONE}.json").is_file()


def folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the subfolders of a folder whose names match, sorted by name."""
    return [folder / found for found in files_of(folder).folders(folder) if name.fullmatch(found)]


PARTS = [
    PartKind((SUFFIXES, DIGEST_NAME), SUFFIX_PLAN, is_over=lambda *_: False, is_needed=None),
    PartKind(
        (SUFFIXES,),
        SUFFIX_PLAN,
        labels={"*": "exact matches"},
        source="values",
        # Exact-match memories hold the tokens of all segments, and 'knnstore suffixes' rebuilds them. They are removed
        # first: after an interruption the next sweep still finds the segment's folder and continues.
        is_over=lambda states: any(segment_root(states.root, name).is_dir() for name in states.gone),
        is_needed=lambda *_: True,
    ),
    PartKind(
        (SEGMENTS, SEGMENT_NAME),
        SEGMENT_PLAN,
        is_over=lambda states, name: name in states.gone,
        is_needed=lambda _, segments, name: name in segments,
        whole=lambda root, state: [segment_root(root, name) for name in state.segments],
        labels={"keys": "keys", "values": "values", DOCUMENTS_FILE: "documents"},
    ),
    PartKind(
        (SEGMENTS, SEGMENT_NAME, "keys"),
        SEGMENT_PLAN,
        is_over=lambda states, name: not states.has_keys(name),
        is_needed=lambda state, _, name: name not in (state.dropped or ()),
        records=(f"{COMMITS_FOLDER}/{KEYS_RECORDS}", f"{COMMITS_FOLDER}/{LAYOUT_TASK}.json"),
    ),
    PartKind(
        (SEGMENTS, SEGMENT_NAME, SCRATCH),
        SEGMENT_PLAN,
        is_over=lambda *_: False,  # removed only when the writer discards it
        is_needed=lambda *_: False,
        temporary=True,
    ),
    PartKind(
        (INDEX, DIGEST_NAME),
        INDEX_PLAN,
        labels={QUANTIZER: "index quantiser"},
        source="keys",
        is_over=lambda states, index: not states.has_index(index),
        is_needed=lambda state, _, index: index == state.index,
        whole=lambda root, state: [index_root(root, state.index) / QUANTIZER] if state.index else [],
    ),
    PartKind(
        (INDEX, DIGEST_NAME, LISTS, SEGMENT_NAME),
        INDEX_PLAN,
        labels={"keys": "index keys", "codes": "index codes"}
        | dict.fromkeys(("values", "rows", "offsets"), "index values and rows"),
        is_over=lambda states, _, name: states.is_over(name),
        is_needed=lambda state, _, index, name: index == state.index and name in state.indexed,
        whole=lambda root, state: [index_root(root, str(state.index)) / LISTS / name for name in state.indexed],
    ),
    PartKind(
        (INDEX, DIGEST_NAME, RUNS, _RUNS_OF),
        INDEX_PLAN,
        is_over=lambda states, index, name: (
            index == states.present.index and (name in (SAMPLE, *states.present.indexed) or states.is_over(name))
        ),
        is_needed=lambda *_: False,
        temporary=True,
    ),
    PartKind(
        (INDEX, DIGEST_NAME, RUNS),
        INDEX_PLAN,
        is_over=lambda states, index: not any((index_root(states.root, index) / RUNS).glob("*")),
        is_needed=lambda *_: False,
        temporary=True,
    ),
]
