"""The kinds of parts of a store: planned folders of arrays with commit records, and what keeps each of them alive.

A sweep and ``verify`` go through ``PARTS``, to which an index of another kind may add its own.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from knnstore.datastore.commits import COMMITS_FOLDER, DONE
from knnstore.datastore.history import changes, is_held, within_reach
from knnstore.datastore.layout import (
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

SCRATCH = re.compile("parts|append|copy")
"""Folders of a segment that are needed only while it is being made."""
_RUNS_OF = re.compile(f"{SEGMENT_NAME.pattern}|{SAMPLE}")
"""Folders of runs: those of a segment's lists, and the sample that the quantisers are trained on."""


class States:
    """The states of the store at ``root``: all that are ``known``, and the ``present`` one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._changes = changes(root)
        self.known = [change.state for change in self._changes]
        self.present = load_manifest(root)

    @cached_property
    def reach(self) -> list[Manifest]:
        """The states that a restore can return to."""
        return [change.state for change in within_reach(self._changes)]

    @cached_property
    def held(self) -> list[Manifest]:
        """Past states that a reader has open."""
        past = [state for state in self.known if state.state != self.present.state]
        return [state for state in past if is_held(self.root, state.state)]

    @cached_property
    def needed(self) -> list[Manifest]:
        """The states whose segments stay."""
        return [self.present, *self.reach, *self.held]

    @cached_property
    def published(self) -> set[str]:
        """Names of the segments that any state has had."""
        return {name for state in (*self.known, self.present) for name in state.segments}

    @cached_property
    def gone(self) -> set[str]:
        """Names of the published segments that no needed state has."""
        return self.published - {name for state in self.needed for name in state.segments}

    @cached_property
    def indexes(self) -> set[str | None]:
        """Names of the indexes that any state has had."""
        return {state.index for state in (*self.known, self.present)}

    def has_index(self, name: str) -> bool:
        """Whether an index is the present one or that of a held state, or belongs to no state yet."""
        needed = {state.index for state in (self.present, *self.held)}
        return name in needed or name not in self.indexes

    def has_keys(self, segment: str) -> bool:
        """Whether a needed state has the segment's keys in corpus order, or the segment belongs to no state yet."""
        states = [state for state in self.needed if segment in state.segments]
        return segment not in self.published or any(segment not in (state.dropped or ()) for state in states)

    def is_over(self, segment: str) -> bool:
        """Whether a segment is gone, or was never published and its making was given up."""
        return segment in self.gone or not (segment in self.published or segment_root(self.root, segment).is_dir())


@dataclass(frozen=True, slots=True)
class PartKind:
    """A kind of part, whose folder has the names ``path`` from the store's root; a pattern stands for an own name.

    ``is_over``: whether a sweep removes a part, by its own names, and ``records`` beside it before that. ``is_needed``:
    whether the present state needs it, or a state in reach, whose ``segments`` are given; None: if its own record says
    that it is whole. ``whole``: the folders that must be whole, as a state says. ``plan``: the file of its plan, in the
    first folder on the way up that has one. ``temporary``: it belongs to no state.
    """

    path: tuple[str | re.Pattern[str], ...]
    plan: str
    is_over: Callable[..., bool]
    is_needed: Callable[..., bool] | None
    whole: Callable[[Path, Manifest], Iterable[Path]] = lambda root, state: ()
    records: tuple[str, ...] = ()
    temporary: bool = False

    def folders(self, root: Path) -> Iterator[tuple[Path, list[str]]]:
        """The folders of this kind in the store at ``root``, each with its own names; some may not be there."""
        found: list[tuple[Path, list[str]]] = [(root, [])]
        for name in self.path:
            if isinstance(name, str):
                found = [(path / name, names) for path, names in found]
            else:
                found = [(path, [*names, path.name]) for above, names in found for path in folders(above, name)]
        yield from found

    def is_leftover(self, root: Path, inside: tuple[str, ...], present: Manifest, segments: Collection[str]) -> bool:
        """Whether a file, at ``inside`` below ``root``, lies in a part of this kind that isn't needed."""
        pairs = list(zip(self.path, inside[:-1], strict=False))
        if len(pairs) < len(self.path) or not all(re.fullmatch(name, given) for name, given in pairs):
            return False
        if self.is_needed is None:
            return not is_done(root.joinpath(*inside[: len(pairs)]))
        return not self.is_needed(present, segments, *(given for name, given in pairs if not isinstance(name, str)))


def is_done(part: Path) -> bool:
    """Whether the own record of a part that no state names says that it is whole."""
    return (part / COMMITS_FOLDER / f"{DONE}.json").is_file()


def folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """The folders in a folder whose names match, by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_dir())


PARTS = [
    PartKind((SUFFIXES, DIGEST_NAME), SUFFIX_PLAN, is_over=lambda *_: False, is_needed=None),
    PartKind(
        (SUFFIXES,),
        SUFFIX_PLAN,
        # exact-match memories hold the tokens of all segments: 'knnstore suffixes' makes them again. They go first,
        # since a sweep that is cut short goes on as long as the segment is there
        is_over=lambda states: any(segment_root(states.root, name).is_dir() for name in states.gone),
        is_needed=lambda *_: True,
    ),
    PartKind(
        (SEGMENTS, SEGMENT_NAME),
        SEGMENT_PLAN,
        is_over=lambda states, name: name in states.gone,
        is_needed=lambda _, segments, name: name in segments,
        whole=lambda root, state: [segment_root(root, name) for name in state.segments],
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
        is_over=lambda *_: False,  # but for who gives it up
        is_needed=lambda *_: False,
        temporary=True,
    ),
    PartKind(
        (INDEX, DIGEST_NAME),
        INDEX_PLAN,
        is_over=lambda states, index: not states.has_index(index),
        is_needed=lambda state, _, index: index == state.index,
        whole=lambda root, state: [index_root(root, state.index) / QUANTIZER] if state.index else [],
    ),
    PartKind(
        (INDEX, DIGEST_NAME, LISTS, SEGMENT_NAME),
        INDEX_PLAN,
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
