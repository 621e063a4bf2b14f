"""Repair a store: rebuild what ``verify`` reports as damaged, each file from the nearest source, and verify again.

The order matters: first the JSON that describes the rest, then documents and tokens, then what keys are made with, the
keys, and finally the index, which is built from all of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from knnstore.corpus.selection import Selection
from knnstore.datastore.commits import FileRecord, load_commit
from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.history import load_change, record_path
from knnstore.datastore.layout import LISTS, SEGMENTS, segment_root
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import KnnstoreError, LockedError
from knnstore.files import write_atomically
from knnstore.indexes.plan import IndexFolder
from knnstore.indexes.registry import open_index, type_in, type_of
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.lm.spec import LmSpec, default_model, resolve_model
from knnstore.recovery.segments import Remaker, work_of
from knnstore.scheduling import Job
from knnstore.suffix_array.build import build_suffixes
from knnstore.verification.bitflips import corrected_file
from knnstore.verification.check import UNRECORDED, VerifyReport, require_store, verify
from knnstore.verification.damage import Damage, needed_keys
from knnstore.wording import command

_KIND, _REBUILD = "repair", "rebuild"


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """What a repair may use: the LM (None: the default LM), and the corpus if it is given.

    ``include``, ``exclude`` and ``follow_links`` select the files of the corpus, as for the ingest.
    """

    model: str | None = None
    corpus: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``repaired``: the former damages, each with how it was repaired; ``left``: the remaining ones, each with why.

    ``resumed``: whether an interrupted repair was finished.
    """

    store: str
    repaired: tuple[tuple[Damage, str], ...]
    left: tuple[tuple[Damage, str], ...]
    resumed: bool = False


def repair(root: Path, options: RepairOptions, job: Job) -> RepairReport:
    """Repair the store at ``root`` as far as its copies, the LM and the corpus allow.

    What can't be repaired is reported, never guessed. Raises LockedError while another process writes, or if one has
    taken the store over; StoreNotFoundError if there is no store.
    """
    require_store(root)
    with editing(root, job.reporter.say) as edit:
        work = _Repair(edit, options, job)
        before = _verified(edit, job)
        resumed = work.interrupted() is not None
        if before.intact and not resumed:
            return RepairReport(str(root), (), ())
        work.correct_bits(before.damages)
        now = _verified(edit, job) if work.done else before
        if work.bring_back(now.damages):
            now = _verified(edit, job)
        work.segments(now.damages)
        damaged_index = [damage for damage in now.damages if damage.source == "keys"]
        work.drop_from_index(damaged_index)
    work.rebuild_suffixes([damage for damage in now.damages if damage.source == "values"])
    if rebuild := work.interrupted():
        work.rebuild_index(rebuild, damaged_index)
    with editing(root, job.reporter.say) as edit:
        after = _verified(edit, job)
    return replace(work.report(before, after), resumed=resumed)


def _verified(edit: Edit, job: Job) -> VerifyReport:
    """Verify a store that is held for writing.

    Raises LockedError if another writer has taken it over, because unfinished files look like damage.
    """
    report = verify(edit.root, job.reporter)
    edit.require()
    return report


class _Repair:
    """One repair. ``done``: how each file was repaired, by path; ``failed``: why it couldn't be."""

    def __init__(self, edit: Edit, options: RepairOptions, job: Job) -> None:
        self._edit = edit
        self._root = edit.root
        self._options = options
        self._job = job
        self.done: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def correct_bits(self, damages: Iterable[Damage]) -> None:
        """Correct single flipped bits of small files."""
        for damage in damages:
            path = self._root / damage.path
            if damage.source == "checksum" and (data := corrected_file(self._root, path)) is not None:
                write_atomically(path, data)
                self._attempt([damage], lambda: "one bit corrected")

    def segments(self, damages: Iterable[Damage]) -> None:
        """Rebuild the damaged files of the segments."""
        by_segment: dict[str, list[Damage]] = {}
        for damage in damages:
            if damage.path.startswith(f"{SEGMENTS}/") and damage.rebuildable:
                by_segment.setdefault(damage.path.split("/")[1], []).append(damage)
        for name, own in by_segment.items():
            try:
                self._segment(Segment(segment_root(self._root, name)), own)
            except LockedError:
                raise
            except KnnstoreError as error:  # without its plan, nothing of it can be rebuilt
                self.failed |= {damage.path: str(error) for damage in own}

    def bring_back(self, damages: Iterable[Damage]) -> bool:
        """Restore the own keys of segments whose only keys are in damaged lists; return whether any were restored."""
        manifest = load_manifest(self._root)
        restored = False
        for name in manifest.dropped or ():
            own = [damage for damage in damages if name in needed_keys(damage.path, (name,))]
            if own:
                restored = self._attempt(own, partial(self._bring_back, name)) or restored
        return restored

    def _remaker(self, segment: Segment, spec: LmSpec) -> Remaker:
        options = self._options
        selection = Selection(options.include, options.exclude, options.follow_links)
        return Remaker(segment, self._index(), spec, options.corpus, selection, self._job)

    def _bring_back(self, name: str) -> str:
        segment = Segment(segment_root(self._root, name))
        remaker = self._remaker(segment, self._spec(segment))
        remaker.layout()
        ways = {remaker.keys(chunk, None) for chunk in range(segment.chunks)}
        state = self._edit.state
        dropped = tuple(other for other in state.dropped or () if other != name) or None
        rebuild = self.interrupted()
        facts = {_REBUILD: rebuild} if rebuild else {}
        self._edit.publish(replace(state, dropped=dropped), _KIND, f"give segment {name} its own keys again", **facts)
        return f"after the segment's keys {' and '.join(sorted(ways))}"

    def interrupted(self) -> dict[str, Any] | None:
        """Return the recipe of what a repair has removed from the index and not rebuilt yet; None if there is nothing.

        It is stored in the record of the present state, so that another repair can continue after a kill.
        """
        try:
            change = load_change(self._root, load_manifest(self._root).state)
            if change.kind == _KIND and _REBUILD in change.facts:
                recipe: dict[str, Any] = change.facts[_REBUILD]
                _options(recipe, record_path(self._root, change.state.state))
                return recipe
        except KnnstoreError:  # verify reports a damaged record
            pass
        return None

    def drop_from_index(self, damages: list[Damage]) -> None:
        """Remove damaged lists, or the whole index, from the present state, so that no search uses them."""
        manifest = self._edit.state
        if not damages or manifest.index is None:
            return
        try:
            folder = open_index(self._root, manifest.index)
        except KnnstoreError as error:
            self.failed |= {
                damage.path: f"{error}: build it again with {command('index', overwrite=True)}" for damage in damages
            }
            return
        inside = [PurePosixPath(damage.path).parts[2:] for damage in damages]
        of_lists = {parts[1] for parts in inside if parts[0] == LISTS and len(parts) > 2}
        # all lists depend on the quantisers
        whole = any(parts[0] != LISTS or len(parts) < 3 for parts in inside)
        names = set(manifest.indexed) if whole else of_lists
        if kept_only := names & set(manifest.dropped or ()):
            why = f"the index holds the only keys of segment {', '.join(sorted(kept_only))}, which couldn't be restored"
            self.failed |= {damage.path: self.failed.get(damage.path, why) for damage in damages}
            return
        sources = {(SEGMENTS, name, array) for name in names for array in ("keys", "values", "key_scales")}
        if source := next((path for path in self.failed if PurePosixPath(path).parts[:3] in sources), None):
            why = f"it would be built from {source}, which couldn't be rebuilt: the lists keep their copy of the keys"
            self.failed |= {damage.path: why for damage in damages}
            return
        if whole:
            state, what = replace(manifest, index=None, indexed=()), "discard a damaged index"
        else:
            kept = tuple(name for name in manifest.indexed if name not in names)
            state, what = replace(manifest, indexed=kept), f"discard lists of {len(names)} segments"
        self._edit.publish(state, _KIND, what, **{_REBUILD: type_of(folder).recipe(folder.plan)})
        # Carried-over lists can have other members than lists that are filled from the keys, so nothing of what is
        # rebuilt may be kept.
        for path in [folder.root] if whole else [folder.lists(name) for name in names]:
            remove_tree(path)

    def rebuild_index(self, rebuild: dict[str, Any], damages: Iterable[Damage]) -> None:
        """Rebuild what this repair, or a killed one, has removed. Raises what ``build_index`` raises."""
        options = _options(rebuild, self._root)
        build_index(Datastore(self._root), options, self._job)
        self.done |= {damage.path: "rebuilt from the keys" for damage in damages}

    def rebuild_suffixes(self, damages: list[Damage]) -> None:
        """Rebuild the exact-match memory if it is that of the present state; this removes other memories."""
        if not damages:
            return
        try:
            build_suffixes(Datastore(self._root), self._job, again=True)
            self.done |= {damage.path: "rebuilt from the values" for damage in damages}
        except KnnstoreError as error:
            self.failed |= {damage.path: str(error) for damage in damages}

    def report(self, before: VerifyReport, after: VerifyReport) -> RepairReport:
        """Return what is no longer damaged, and what still is."""
        now = {damage.path: damage for damage in after.damages}
        repaired = [
            (damage, self.done.get(damage.path, "intact again with the files it belongs to"))
            for damage in before.damages
            if damage.path not in now
        ]
        left = [(damage, self.failed.get(damage.path, _why_not(damage))) for damage in now.values()]
        return RepairReport(str(self._root), tuple(repaired), tuple(left))

    def _segment(self, segment: Segment, damages: list[Damage]) -> None:
        """Repair a segment in the order of dependencies. The corpus rebuilds documents and values all at once."""
        spec = self._spec(segment)
        records = _records(segment)
        prefix = f"segments/{segment.root.name}/"
        for kind in ("tokens", "metadata", "values", "samples", "layout", "keys"):
            # opened again each time, because its cached documents may just have changed
            remaker = self._remaker(Segment(segment.root), spec)
            made: dict[int | str, bool] = {}
            for damage in damages:
                inside = damage.path.removeprefix(prefix)
                work, chunk = work_of(inside)
                once = inside if kind == "metadata" else chunk
                if work != kind or once in made or (kind == "values" and self.done.get(damage.path)):
                    continue
                made[once] = True
                together = [d for d in damages if work_of(d.path.removeprefix(prefix)) == (work, chunk)]
                if kind == "metadata":
                    together = [damage]
                elif kind == "tokens" and self._options.corpus:
                    together += [d for d in damages if work_of(d.path.removeprefix(prefix))[0] == "values"]
                self._attempt(together, _maker(remaker, kind, inside, chunk, records))

    def _attempt(self, damages: list[Damage], make: Callable[[], str]) -> bool:
        try:
            how = make()
        except LockedError:
            raise
        except (KnnstoreError, OSError) as error:
            self.failed |= {damage.path: str(error) for damage in damages}
            return False
        self.done |= {damage.path: how for damage in damages}
        self._job.reporter.say(f"repaired  {damages[0].path} {how}")
        return True

    def _spec(self, segment: Segment) -> LmSpec:
        """Return the LM for the segment's keys."""
        plan, folder = segment.plan, resolve_model(self._options.model or default_model())
        return LmSpec(str(folder.resolve()), plan.key.layer, plan.compute.partition(" ")[0], self._options.device)

    def _index(self) -> IndexFolder[Any] | None:
        name = load_manifest(self._root).index
        try:
            return None if name is None else open_index(self._root, name)
        except KnnstoreError:
            return None


def _maker(remaker: Remaker, kind: str, inside: str, chunk: int, records: dict[str, FileRecord]) -> Callable[[], str]:
    name = Path(inside).parent.as_posix()
    made: dict[str, Callable[[], str]] = {
        "tokens": remaker.tokens,
        "metadata": lambda: remaker.metadata("" if name == "." else name, records.get(inside)),
        "values": lambda: remaker.values(chunk, records.get(inside)),
        "samples": remaker.samples,
        "layout": remaker.layout,
        "keys": lambda: remaker.keys(chunk, records.get(f"keys/c/{chunk}/0")),
    }
    return made[kind]


def _records(segment: Segment) -> dict[str, FileRecord]:
    """Return the record of each file, from the segment's readable commit records."""
    records: dict[str, FileRecord] = {}
    for path in sorted((segment.root / "commits").glob("*.json")):
        try:
            records |= {record.path: record for record in load_commit(path).files}
        except KnnstoreError:  # reported as damage itself
            continue
    return records


def _why_not(damage: Damage) -> str:
    if damage.problem == UNRECORDED and not damage.rebuildable:
        return "the store doesn't need it: delete it or move it elsewhere"
    if not damage.rebuildable:
        return "it can't be rebuilt: restore it from a copy, or ingest the corpus again"
    return "its source is damaged too"


def _options(recipe: Any, where: Path) -> IndexOptions:
    """Return the options for rebuilding an index, from its recorded recipe."""
    return type_in(recipe, str(where)).options(recipe, str(where))
