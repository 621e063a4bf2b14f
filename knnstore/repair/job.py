"""The repair: what verify found is made again, each thing from what is nearest, and all of it is verified once more.

Order matters: the JSON that says what is what, the documents and tokens, what the keys are made with, the keys, and
last the index, which is made of all of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from knnstore.atomic import sync_folder, write_atomically
from knnstore.build import IndexOptions, build_index
from knnstore.corpus.selection import Selection
from knnstore.datastore.commits import FileRecord, load_commit
from knnstore.datastore.history import publish
from knnstore.datastore.locking import writing
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore, segment_root
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import KnnstoreError
from knnstore.index.plan import IndexFolder, IndexPlan, open_index
from knnstore.lm.spec import LmSpec, default_model, resolve_model
from knnstore.progress import Reporter
from knnstore.repair.segments import Remaker, work_of
from knnstore.scheduling import Runner
from knnstore.suffixes.build import build_suffixes
from knnstore.verify import Damage, VerifyReport, verify
from knnstore.verify.damage import needed_keys
from knnstore.verify.mending import mended_file


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """What a repair may use: the LM (None: the default one), the corpus (if any is given), bytes of memory.

    ``include``, ``exclude`` and ``follow_links``: which files of the corpus are read, as for the ingest.
    """

    model: str | None = None
    corpus: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    device: str = "auto"
    memory: int = 4_000_000_000


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``repaired``: the damages that are no more, each with how; ``left``: those that are, each with why."""

    store: str
    repaired: tuple[tuple[Damage, str], ...]
    left: tuple[tuple[Damage, str], ...]


def repair(root: Path, options: RepairOptions, runner: Runner, reporter: Reporter | None = None) -> RepairReport:
    """Repair the store at ``root`` as far as its copies, the LM and the corpus allow.

    Raises LockedError while another process writes; what can't be repaired is reported, never guessed.
    """
    reporter = reporter or Reporter()
    found = verify(root, reporter)
    if found.intact:
        return RepairReport(str(root), (), ())
    work = _Repair(root, options, runner, reporter)
    with writing(root):
        work.mend(found.damages)
        found_then = verify(root, reporter) if work.done else found
        if work.bring_back(found_then.damages):
            found_then = verify(root, reporter)
        work.segments(found_then.damages)
        damaged_index = [damage for damage in found_then.damages if damage.source == "keys"]
        dropped = work.drop_from_index(damaged_index)
    if dropped:
        work.rebuild_index(damaged_index)
    work.rebuild_suffixes([damage for damage in found_then.damages if damage.source == "values"])
    return work.report(found, verify(root, reporter))


class _Repair:
    """One repair; ``done`` and ``failed`` say how, and why not, by the damage's path."""

    def __init__(self, root: Path, options: RepairOptions, runner: Runner, reporter: Reporter) -> None:
        self._root = root
        self._options = options
        self._runner = runner
        self._reporter = reporter
        self._plan: IndexPlan | None = None
        self.done: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def mend(self, damages: Iterable[Damage]) -> None:
        """Put single bits of small files right."""
        for damage in damages:
            path = self._root / damage.path
            if damage.source == "checksum" and (data := mended_file(self._root, path)) is not None:
                write_atomically(path, data)
                self._attempt([damage], lambda: "one bit put right")

    def segments(self, damages: Iterable[Damage]) -> None:
        """Make again what is damaged in the segments."""
        by_segment: dict[str, list[Damage]] = {}
        for damage in damages:
            if damage.path.startswith("segments/") and damage.rebuildable:
                by_segment.setdefault(damage.path.split("/")[1], []).append(damage)
        for name, mine in by_segment.items():
            try:
                self._segment(Segment(segment_root(self._root, name)), mine)
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
        return Remaker(segment, self._index(), spec, options.corpus, selection, self._runner)

    def _bring_back(self, name: str) -> str:
        segment = Segment(segment_root(self._root, name))
        remaker = self._remaker(segment, self._spec(segment))
        segment.commits.commit("layout", remaker.array_files("keys"))
        ways = {remaker.keys(chunk, None) for chunk in range(segment.chunks)}
        state = load_manifest(self._root)
        dropped = tuple(other for other in state.dropped or () if other != name) or None
        publish(self._root, replace(state, dropped=dropped), "repair", f"give segment {name} its own keys again")
        return f"after the segment's keys {' and '.join(sorted(ways))}"

    def drop_from_index(self, damages: list[Damage]) -> bool:
        """Take what is damaged out of the store's present state, so that nobody searches it; whether anything was."""
        if not damages:
            return False
        manifest = load_manifest(self._root)
        try:
            folder = None if manifest.index is None else open_index(self._root, manifest.index)
        except KnnstoreError as error:
            self.failed |= {
                damage.path: f"{error}: build it anew with 'knnstore index --overwrite'" for damage in damages
            }
            return False
        if folder is None:
            return False
        self._plan = folder.plan
        inside = [Path(damage.path).relative_to(Path("index") / folder.root.name) for damage in damages]
        if any(path.parts[0] != "lists" for path in inside):  # the quantisers, on which all lists depend
            publish(self._root, replace(manifest, index=None, indexed=()), "repair", "discard a damaged index")
            remove_tree(folder.root)
            return True
        names = {path.parts[1] for path in inside}
        kept = tuple(name for name in manifest.indexed if name not in names)
        publish(self._root, replace(manifest, indexed=kept), "repair", f"discard lists of {len(names)} segments")
        for name in names:
            files = ["/".join(path.parts[2:]) for path in inside if path.parts[1] == name]
            _forget(folder.lists(name), files)
        return True

    def rebuild_index(self, damages: list[Damage]) -> None:
        """Fill again what was dropped, under the same plan."""
        plan = self._plan
        assert plan is not None
        options = IndexOptions(
            nlist=plan.nlist,
            pq_bytes=plan.pq_bytes,
            train_sample=plan.train_rows,
            nprobe=plan.nprobe,
            rotation=plan.rotation,
            seed=plan.seed,
            memory=self._options.memory,
        )
        try:
            build_index(Datastore(self._root), options, self._runner, self._reporter)
            self.done |= {damage.path: "filled again from the keys" for damage in damages}
        except KnnstoreError as error:
            self.failed |= {damage.path: str(error) for damage in damages}

    def rebuild_suffixes(self, damages: list[Damage]) -> None:
        """Make the exact-match memory anew, if it is that of the present state; others are removed by that."""
        if not damages:
            return
        try:
            with writing(self._root):
                for name in {damage.path.split("/")[1] for damage in damages}:
                    remove_tree(self._root / "suffixes" / name)
            build_suffixes(Datastore(self._root), self._options.memory, self._reporter)
            self.done |= {damage.path: "made anew from the values" for damage in damages}
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
        except (KnnstoreError, OSError) as error:
            self.failed |= {damage.path: str(error) for damage in damages}
            return False
        self.done |= {damage.path: how for damage in damages}
        self._reporter.say(f"repaired  {damages[0].path} {how}")
        return True

    def _spec(self, segment: Segment) -> LmSpec:
        """The LM that is to make the segment's keys."""
        plan, folder = segment.plan, resolve_model(self._options.model or default_model())
        return LmSpec(str(folder.resolve()), plan.key.layer, plan.compute.partition(" ")[0], self._options.device)

    def _index(self) -> IndexFolder | None:
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


def _forget(folder: Path, files: list[str]) -> None:
    """Remove the records of the tasks that wrote the files, or that can't be read, so that they run again."""
    for path in sorted((folder / "commits").glob("*.json")):
        try:
            about = {record.path for record in load_commit(path).files}
        except KnnstoreError:
            about = set(files)
        if about & set(files):
            path.unlink()
    sync_folder(folder / "commits")


def _why_not(damage: Damage) -> str:
    if not damage.rebuildable:
        return "nothing says what it was: restore it from a copy, or ingest the corpus again"
    return "what it would be made from is damaged too"
