"""The repair: what verify found is made again, each thing from what is nearest, and all of it is verified once more.

Order matters: the JSON that says what is what, the documents and tokens, what the keys are made with, the keys, and
last the index, which is made of all of them.
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
from knnstore.datastore.layout import segment_root
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
    """What a repair may use: the LM (None: the default one), the corpus (if any is given).

    ``include``, ``exclude`` and ``follow_links``: which files of the corpus are read, as for the ingest.
    """

    model: str | None = None
    corpus: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``repaired``: the former damages, each with how; ``left``: those that remain, each with why.

    ``resumed``: a repair that had been interrupted was finished.
    """

    store: str
    repaired: tuple[tuple[Damage, str], ...]
    left: tuple[tuple[Damage, str], ...]
    resumed: bool = False


def repair(root: Path, options: RepairOptions, job: Job) -> RepairReport:
    """Repair the store at ``root`` as far as its copies, the LM and the corpus allow.

    Raises LockedError while another process writes, or if one has taken the store over; StoreNotFoundError if there is
    no store. What can't be repaired is reported, never guessed.
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
    """What is damaged in a store that is held for writing.

    Raises LockedError if another writer has taken it over: files that are in the making look like damage.
    """
    report = verify(edit.root, job.reporter)
    edit.require()
    return report


class _Repair:
    """One repair; ``done`` and ``failed`` say how, and why not, by the damage's path."""

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
        """Make again what is damaged in the segments."""
        by_segment: dict[str, list[Damage]] = {}
        for damage in damages:
            if damage.path.startswith("segments/") and damage.rebuildable:
                by_segment.setdefault(damage.path.split("/")[1], []).append(damage)
        for name, mine in by_segment.items():
            try:
                self._segment(Segment(segment_root(self._root, name)), mine)
            except LockedError:
                raise
            except KnnstoreError as error:  # its plan can't be read: nothing of it can be made again
                self.failed |= {damage.path: str(error) for damage in mine}

    def bring_back(self, damages: Iterable[Damage]) -> bool:
        """Give segments whose only keys lie in lists that are damaged keys of their own again; whether any has."""
        manifest = load_manifest(self._root)
        found = False
        for name in manifest.dropped or ():
            mine = [damage for damage in damages if name in needed_keys(damage.path, (name,))]
            if mine:
                found = self._attempt(mine, partial(self._bring_back, name)) or found
        return found

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
        """How to build what a repair took out of the index and hasn't put back yet; None if there is nothing.

        It is in the record of the present state, so that another repair goes on where one was killed.
        """
        try:
            change = load_change(self._root, load_manifest(self._root).state)
            if change.kind == _KIND and _REBUILD in change.facts:
                recipe: dict[str, Any] = change.facts[_REBUILD]
                _options(recipe, record_path(self._root, change.state.state))
                return recipe
        except KnnstoreError:  # a damaged record is told of by verify
            pass
        return None

    def drop_from_index(self, damages: list[Damage]) -> None:
        """Take what is damaged out of the store's present state, so that nobody searches it, and remove it."""
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
        of_lists = {parts[1] for parts in inside if parts[0] == "lists" and len(parts) > 2}
        whole = any(
            parts[0] != "lists" or len(parts) < 3 for parts in inside
        )  # the quantisers: all lists depend on them
        names = set(manifest.indexed) if whole else of_lists
        if kept_only := names & set(manifest.dropped or ()):
            why = f"the only keys of segment {', '.join(sorted(kept_only))} lie there, and couldn't be brought back"
            self.failed |= {damage.path: self.failed.get(damage.path, why) for damage in damages}
            return
        sources = {("segments", name, array) for name in names for array in ("keys", "values", "key_scales")}
        if source := next((path for path in self.failed if PurePosixPath(path).parts[:3] in sources), None):
            why = (
                f"it would be built from {source}, which couldn't be made again: the lists keep their copy of the keys"
            )
            self.failed |= {damage.path: why for damage in damages}
            return
        if whole:
            state, what = replace(manifest, index=None, indexed=()), "discard a damaged index"
        else:
            kept = tuple(name for name in manifest.indexed if name not in names)
            state, what = replace(manifest, indexed=kept), f"discard lists of {len(names)} segments"
        self._edit.publish(state, _KIND, what, **{_REBUILD: type_of(folder).recipe(folder.plan)})
        # lists that were carried over have other members than lists that are filled from the keys: none is kept
        for path in [folder.root] if whole else [folder.lists(name) for name in names]:
            remove_tree(path)

    def rebuild_index(self, rebuild: dict[str, Any], damages: Iterable[Damage]) -> None:
        """Build again what this repair, or one that was killed, took out. Raises what ``build_index`` does."""
        options = _options(rebuild, self._root)
        build_index(Datastore(self._root), options, self._job)
        self.done |= {damage.path: "built again from the keys" for damage in damages}

    def rebuild_suffixes(self, damages: list[Damage]) -> None:
        """Make the exact-match memory anew, if it is that of the present state; others are removed by that."""
        if not damages:
            return
        try:
            build_suffixes(Datastore(self._root), self._job, again=True)
            self.done |= {damage.path: "made again from the values" for damage in damages}
        except KnnstoreError as error:
            self.failed |= {damage.path: str(error) for damage in damages}

    def report(self, before: VerifyReport, after: VerifyReport) -> RepairReport:
        """What is no more damaged, and what still is."""
        now = {damage.path: damage for damage in after.damages}
        repaired = [
            (damage, self.done.get(damage.path, "right again with what it belongs to"))
            for damage in before.damages
            if damage.path not in now
        ]
        left = [(damage, self.failed.get(damage.path, _why_not(damage))) for damage in now.values()]
        return RepairReport(str(self._root), tuple(repaired), tuple(left))

    def _segment(self, segment: Segment, damages: list[Damage]) -> None:
        """Each kind of work in the order in which one needs the other; what the corpus gives, it gives whole."""
        spec = self._spec(segment)
        records = _records(segment)
        prefix = f"segments/{segment.root.name}/"
        for kind in ("tokens", "metadata", "values", "samples", "layout", "keys"):
            # opened anew each time: what it remembers of its documents may just have changed
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
        """The LM that is to make the segment's keys."""
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
    """What the segment's readable records say of each file."""
    found: dict[str, FileRecord] = {}
    for path in sorted((segment.root / "commits").glob("*.json")):
        try:
            found |= {record.path: record for record in load_commit(path).files}
        except KnnstoreError:  # told of as damage of its own
            continue
    return found


def _why_not(damage: Damage) -> str:
    if damage.problem == UNRECORDED and not damage.rebuildable:
        return "nothing of the store needs it: remove it, or put it elsewhere"
    if not damage.rebuildable:
        return "nothing says what it was: restore it from a copy, or ingest the corpus again"
    return "what it would be made from is damaged too"


def _options(recipe: Any, where: Path) -> IndexOptions:
    """The options of what a record says of an index that is to be built again."""
    return type_in(recipe, str(where)).options(recipe, str(where))
