"""Freeze or kill each writing command at every kind of request to object storage, while another takes over the store.

The service is moto's S3 server on loopback. A writer is stopped (SIGSTOP) just before or just after one of its
requests; another command takes over its lease, which lasts a second here, and publishes; then the first one continues.
Afterwards every acknowledged change must be present, every file must match its checksum, and the first command must
succeed when it is repeated.
"""

import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.objects import bucket

from faults.forking import Forked, in_process
from faults.material import make_corpus, make_model, run
from faults.outcome import Outcome
from knnstore.datastore import history
from knnstore.datastore.locking import holder
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.selection import origins_of
from knnstore.datastore.store import Datastore
from knnstore.errors import StoreNotFoundError
from knnstore.files import lease, path_of
from knnstore.scoring.tuned_record import TUNED_FILE
from knnstore.verification.check import verify

_BUCKET = "bucket"
_PROCESSES = 2
_INGEST = ("ingest", "--workers", "0", "--chunk-rows", "256", "--context", "32", "--store", "{at}/books")
_INDEX = ("index", "--store", "{at}/books", "--nlist", "8", "--pq-bytes", "4")
_IMPORT = ("import", "--keys", "keys.npy", "--vals", "values.npy")
_REMOVE = ("remove", "--store", "{at}/books", "--document")
_UNRECORDED = "is in no commit record"  # files of unfinished or interrupted tasks
_UNFINISHED = ("hasn't ended: run the same 'knnstore ingest' again", "was started with another corpus")
"""Correct messages of another command about a discarded store whose new ingest has started."""
_FORBIDDEN = ("--overwrite", "Traceback", "damaged")
"""What the message of a writer that was replaced must not contain."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": (*_INGEST, "--corpus", "books/"),
    "append": (*_INGEST, "--corpus", "more/"),
    "append others": (*_INGEST, "--corpus", "other/"),
    "overwrite": (*_INGEST, "--corpus", "books/", "--overwrite"),
    "index": _INDEX,
    "index --overwrite": (*_INDEX, "--overwrite"),
    "index --drop-keys": (*_INDEX, "--drop-keys"),
    "remove": (*_REMOVE, "books/2.txt"),
    "remove another": (*_REMOVE, "books/4.txt"),
    "restore": ("restore", "--store", "{at}/books", "--state", "3"),
    "compact": ("compact", "--store", "{at}/books"),
    "suffixes": ("suffixes", "--store", "{at}/books"),
    "subset": ("subset", "{at}/books", "--sample", "50%", "--into", "{at}/half"),
    "merge": ("merge", "{at}/books", "{at}/second", "--into", "{at}/both"),
    "import": (*_IMPORT, "--dim", "16", "--key-type", "float16", "--store", "{at}/imported"),
    "repair": ("repair", "--store", "{at}/books"),
    "tune": ("tune", "neighbours.parquet", "--store", "{at}/books"),
}
_INGESTED = {
    "ingest": {f"books/{number}.txt" for number in range(6)},
    "append": {"more/0.txt", "more/1.txt"},
    "append others": {"other/0.txt", "other/1.txt"},
    "overwrite": {f"books/{number}.txt" for number in range(6)},
}
_REMOVED = {"remove": {"books/2.txt"}, "remove another": {"books/4.txt"}}
"""The documents that a command adds to ``books`` or removes."""
_SECOND = (*_INGEST[:-1], "{at}/second", "--corpus", "other/")
_STORY = re.compile(
    r"(?P<writer>.+) (?P<how>frozen|killed) (?P<when>before|after) (?P<kind>.+) (?P<turn>[0-9]+), then (?P<rival>.+)"
)
_EXPORT = ("export", "--store", "{at}/books", "--out", ".")
_SCORE = ("score", "--store", "{at}/books", "--exact", "--k", "8", "--save-neighbours", "neighbours.parquet")

_YOUNG = ("ingest",)
_OLD = ("ingest", "index", "append", "remove another")
"""The commands that make a store: a new one, and one with a history, from which ``books/4.txt`` was removed."""
_BOOKS = ("remove", "append others", "compact")
# A writer, the commands that make its store, and the commands of which one takes over.
WRITERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("ingest", (), ("ingest",)),
    ("append", _YOUNG, ("append", *_BOOKS)),
    ("append", _OLD[:2], ("append others", "remove")),
    ("overwrite", _OLD, ("overwrite", "tune", *_BOOKS)),
    ("index", _YOUNG, ("index", "remove", "append others")),
    ("index", _OLD, ("index", "index --overwrite", *_BOOKS)),
    ("index --overwrite", _OLD, ("index", "index --overwrite", *_BOOKS)),
    ("index --drop-keys", (*_OLD, "index"), ("index --drop-keys", *_BOOKS)),
    ("remove", _OLD, ("remove", "append others", "compact", "index")),
    ("restore", _OLD, ("restore", "remove", "append others")),
    ("compact", _OLD, ("remove", "append others", "compact", "index")),
    ("suffixes", _OLD, ("suffixes", "remove", "compact")),
    ("subset", _OLD, ("subset",)),
    ("merge", _OLD, ("merge",)),
    ("import", (), ("import",)),
    ("repair", _OLD, ("repair", "remove", "append others")),
    ("tune", _OLD, ("tune", "remove", "append others", "overwrite")),
)
_MADE = {"subset": "half", "merge": "both", "import": "imported"}
"""Stores that are made, if not ``books``."""


def torture(count: int, seed: int, folder: Path, stories: Sequence[str] = ()) -> Outcome:
    """Run ``count`` writers, spread over all commands and all kinds of their requests; one in four is killed.

    ``stories``: run only these cases, each as it is printed, on every kind of store that fits.
    ``lost``: an acknowledged change is missing, or a command ended without a result or an error message.
    ``silent``: a file differs from what was written.
    """
    outcome, generator = Outcome("frozen"), random.Random(seed)
    with bucket(folder), _material(folder) as work:
        cases = _retold(stories) if stories else _drawn(work, count, generator, outcome)
        if stories:
            _make_stages(work, [case.writer for case in cases])
        for part in _in_parallel([partial(_try_all, work, some) for some in _dealt(cases)]):
            outcome.tried += part.tried
            outcome.lost += part.lost
            outcome.silent += part.silent
            outcome.counts += part.counts
            outcome.told += part.told
    return outcome


def _drawn(work: Path, count: int, generator: random.Random, outcome: Outcome) -> "list[_Case]":
    """Return cases of all writers, after counting their requests."""
    chosen = sorted(generator.sample(range(len(WRITERS)), min(count, len(WRITERS))))
    writers = [_Writer(number, *WRITERS[chosen[number]]) for number in range(len(chosen))]
    _make_stages(work, writers)
    for some in _in_parallel([partial(_count_all, work, part) for part in _dealt(writers)]):
        for number, kinds in some:
            writers[number].kinds = kinds
    outcome.count("kinds of requests", len({kind for writer in writers for kind in writer.kinds}))
    return _cases(writers, count, generator)


def _retold(stories: Sequence[str]) -> "list[_Case]":
    """Return the cases that these stories describe. Raises ValueError for a story that fits no writer."""
    cases: list[_Case] = []
    for story in stories:
        match = _STORY.fullmatch(story)
        fitting = [each for each in WRITERS if match and match["writer"] == each[0] and match["rival"] in each[2]]
        if match is None or not fitting:
            raise ValueError(
                f"there is no case {story!r}: give one as 'remove frozen before put log/json 1, then index'"
            )
        for each in fitting:
            writer, after, dies = _Writer(len(cases), *each), match["when"] == "after", match["how"] == "killed"
            cases.append(_Case(len(cases), writer, match["rival"], match["kind"], int(match["turn"]), after, dies))
    return cases


@dataclass(slots=True)
class _Writer:
    """A writing command, what made its store, and which commands take over; ``kinds``: counts of its requests."""

    number: int
    name: str
    before: tuple[str, ...]
    rivals: tuple[str, ...]
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def store(self) -> str:
        """Return the name of the store that it writes."""
        return _MADE.get(self.name, "books")

    @property
    def stage(self) -> str:
        """Return the place of its stores before it runs."""
        return _stage(self.before if self.name not in ("merge", "repair") else (*self.before, self.name))


@dataclass(frozen=True, slots=True)
class _Case:
    """One writer, stopped or killed at the ``turn``-th request of a kind, before or after it; and its rival."""

    number: int
    writer: _Writer
    rival: str
    kind: str
    turn: int
    after: bool
    dies: bool

    @property
    def story(self) -> str:
        what, when = "killed" if self.dies else "frozen", "after" if self.after else "before"
        return f"{self.writer.name} {what} {when} {self.kind} {self.turn}, then {self.rival}"


@contextmanager
def _material(folder: Path) -> Iterator[Path]:
    """Provide the working folder: an LM, three corpora, memmaps to import, and neighbours to tune on."""
    work = folder / "work"
    work.mkdir()
    in_process(lambda: make_model(work / "lm") and None)
    make_corpus(work / "books", words=150)
    make_corpus(work / "more", documents=2, words=150, seed=1)
    make_corpus(work / "other", documents=2, words=150, seed=2)
    for command in ("ingest", "export", "score"):
        _require(in_process(partial(_run, work, command, "here")))
    for what, name in (("keys", "keys.npy"), ("vals", "values.npy")):
        next(work.glob(f"dstore_*_{what}.npy")).rename(work / name)
    yield work


def _stage(commands: tuple[str, ...]) -> str:
    return "-".join(["stage", *commands]).replace(" ", "")


def _make_stages(work: Path, writers: list[_Writer]) -> None:
    """Make the stores of the writers, each from the store of one command less."""
    made: set[tuple[str, ...]] = {()}
    for writer in writers:
        for length in range(1, len(writer.before) + 1):
            commands = writer.before[:length]
            if commands not in made:
                _copy(_stage(commands[:-1]), _stage(commands))
                _require(in_process(partial(_run, work, commands[-1], f"s3://{_BUCKET}/{_stage(commands)}")))
                made.add(commands)
        if writer.stage != _stage(writer.before):
            _copy(_stage(writer.before), writer.stage)
        if writer.name == "merge":
            _require(in_process(partial(_run, work, "second", f"s3://{_BUCKET}/{writer.stage}")))
        if writer.name == "repair":
            in_process(partial(_damage, writer.stage))


def _count_all(work: Path, writers: list[_Writer]) -> list[tuple[int, Counter[str]]]:
    """Return the counts of the requests of each writer without a fault."""
    return [(writer.number, in_process(partial(_count, work, writer))) for writer in writers]


def _count(work: Path, writer: _Writer) -> Counter[str]:
    place = f"count-{writer.number}"
    _copy(writer.stage, place)
    requests = _Requests()
    _require(_traced(requests, work, writer.name, f"s3://{_BUCKET}/{place}"))
    return requests.counts


def _cases(writers: list[_Writer], count: int, generator: random.Random) -> list[_Case]:
    """Return cases of each writer in turn, each at the kind of request with the fewest cases so far."""
    seen: Counter[str] = Counter()
    counted = [(writer, Counter[str]()) for writer in writers]
    cases = []
    for number in range(count):
        writer, own = counted[number % len(counted)]
        kind = min(sorted(writer.kinds), key=lambda kind: (own[kind], seen[kind], generator.random()))
        own[kind] += 1
        seen[kind] += 1
        rival = generator.choice(writer.rivals)
        turn = generator.randint(1, writer.kinds[kind])
        cases.append(_Case(number, writer, rival, kind, turn, generator.random() < 0.3, generator.random() < 0.25))
    return cases


def _try_all(work: Path, cases: list[_Case]) -> Outcome:
    outcome = Outcome("frozen")
    for case in cases:
        outcome.tried += 1
        outcome.count("killed" if case.dies else "frozen")
        try:
            _try(outcome, work, case)
        except RuntimeError as error:  # an exception that a command must not raise
            outcome.lose(f"{case.story}: {error}")
        if outcome.tried % 25 == 0:
            print(outcome.text(), file=sys.stderr, flush=True)
    return outcome


def _try(outcome: Outcome, work: Path, case: _Case) -> None:
    writer, name = case.writer, f"case-{case.number}"
    at = f"s3://{_BUCKET}/{name}"
    root = path_of(f"{at}/{writer.store}.knnstore")
    _copy(writer.stage, name)
    requests = _Requests(case.kind, case.turn, signal.SIGKILL if case.dies else signal.SIGSTOP, after=case.after)
    state = in_process(partial(_state, root))
    started = Forked(partial(_traced, requests, work, writer.name, at))
    stopped = started.wait()
    # a writer that was stopped before it held the store or published anything may run after the other
    follows = stopped and in_process(lambda: holder(root) is None and _state(root) == state)
    code, output = in_process(partial(_run, work, case.rival, at))
    rivals = [case.rival]
    unfinished = code and writer.name == "overwrite" and any(why in output for why in _UNFINISHED)
    if unfinished and in_process(partial(_discarded, root)):
        outcome.count("met a discarded store")
        rivals = []
    elif code and not (case.rival == writer.name and "already" in output):
        outcome.lose(f"{case.story}: the other ended with {code}: {output}")
    if stopped:
        os.kill(started.pid, signal.SIGCONT)
    ended = started.result()
    if ended is not None:
        code, output = ended
        outcome.count("refused" if code else "had published")
        if code and ("Error: " not in output or any(word in output for word in _FORBIDDEN)):
            outcome.lose(f"{case.story}: it ended with {code}: {output}")
    if ended is None or ended[0]:
        possible = [[*done, *rivals] for done in ([], ["discard"], [writer.name])]
        _check(outcome, case, root, rivals, possible[:1] if follows else possible)
    else:
        acknowledged = [*rivals, writer.name] if follows else [writer.name, *rivals]
        _check(outcome, case, root, acknowledged, [acknowledged])
    code, output = in_process(partial(_run, work, writer.name, at))
    if code:
        outcome.lose(f"{case.story}: repeated, it ended with {code}: {output}")
    acknowledged = [*rivals, writer.name]
    _check(outcome, case, root, acknowledged, [acknowledged, [writer.name, *acknowledged]])


def _check(outcome: Outcome, case: _Case, root: Path, acknowledged: list[str], possible: list[list[str]]) -> None:
    """Check that the acknowledged changes, oldest first, are present, and that every file is intact.

    ``possible``: sequences of changes, oldest first, of which one must result in the documents of the store.
    """
    documents = [_documents((*case.writer.before, *commands)) for commands in possible]
    missing, damages = in_process(lambda: (_missing(root, acknowledged, documents), _damages(root)))
    if missing:
        outcome.lose(f"{case.story}: after {acknowledged} {missing}")
    if damages and (case.writer.name != "repair" or "repair" in acknowledged):
        outcome.silent += 1
        outcome.told.append(f"{case.story}: {damages}")


def _documents(commands: tuple[str, ...]) -> set[str]:
    """Return the documents of ``books`` after these commands."""
    states: list[set[str]] = []
    for command in commands:
        names = states[-1] if states else set()
        if command in ("overwrite", "discard"):
            names = set()
        elif command == "restore":
            names = states[2]  # state 3 of a store with a history; up to it, each command makes one state
        names = names | _INGESTED.get(command, set())
        states.append(names - _REMOVED.get(command, set()))
    return states[-1] if states else set()


def _missing(root: Path, acknowledged: list[str], documents: list[set[str]]) -> str:
    """Return as text what the last state lacks of the changes."""
    wrong, manifest = [], load_manifest(root)
    if root.name == "books.knnstore":
        names = _names(root) if manifest.segments else set()
        if names not in documents:
            wrong.append(f"the documents are {sorted(names)}, not {' or '.join(map(str, map(sorted, documents)))}")
        last = acknowledged[-1] if acknowledged else ""
        if last == "compact" and (len(manifest.segments) > 1 or manifest.removed):
            wrong.append("it isn't compact")
        if last.startswith("index") and set(manifest.indexed) != set(manifest.segments):
            wrong.append("not all is indexed")
        if "tune" in acknowledged and "overwrite" not in acknowledged and not (root / TUNED_FILE).is_file():
            wrong.append("it isn't tuned")
    changes = [change.state.state for change in history.changes(root)]
    if changes != list(range(1, manifest.state + 1)):
        wrong.append(f"the log has {changes}")
    return ", ".join(wrong)


def _names(root: Path) -> set[str]:
    """Return the documents that a search can find."""
    store = Datastore(root)
    return {str(document) for document in origins_of(store, {s.root.name: _live(store, s) for s in store.segments})}


def _state(root: Path) -> int:
    """Return the number of states the store has had; 0 if it doesn't exist."""
    try:
        return load_manifest(root).state
    except StoreNotFoundError:
        return 0


def _discarded(root: Path) -> bool:
    """Return whether the last change of the store discarded its content."""
    return not load_manifest(root).segments and history.changes(root)[-1].kind == history.OVERWRITE


def _live(store: Datastore, segment: Any) -> Any:
    import numpy as np

    return np.setdiff1d(np.arange(len(segment.documents)), store.removed.get(segment.root.name, np.empty(0, np.int64)))


def _damages(root: Path) -> str:
    damages = [damage for damage in verify(root).damages if not damage.problem.startswith(_UNRECORDED)]
    return ", ".join(f"{damage.path} {damage.problem}" for damage in damages[:3])


def _damage(stage: str) -> None:
    """Flip a bit of a chunk of the store's keys."""
    (chunk,) = path_of(f"s3://{_BUCKET}/{stage}/books.knnstore/segments").glob("0000/keys/c/0/0")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))


def _run(work: Path, name: str, at: str) -> tuple[int, str]:
    """Run a command on the stores at a place, with a lease of one second and without waiting for readers."""
    lease.RENEWED_SECONDS, lease.LAPSED_SECONDS, lease._LOOK_SECONDS = 0.2, 1.0, 0.1
    history.READ_SECONDS = -1
    command = {"second": _SECOND, "export": _EXPORT, "score": _SCORE}.get(name) or COMMANDS[name]
    return run(work, *(word.format(at=at) for word in command))


class _Requests:
    """Counts the requests to the service by kind, and sends this process a signal at one of them."""

    def __init__(self, kind: str = "", turn: int = 0, number: int = 0, *, after: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self._at, self._signal, self._after = (kind, turn), number, after

    def install(self) -> None:
        """Wrap the functions of obstore in this process permanently."""
        import threading

        import obstore

        lock = threading.Lock()

        def watched(method: str, send: Callable[..., Any]) -> Callable[..., Any]:
            def sent(client: Any, path: Any = None, *rest: Any, **options: Any) -> Any:
                if threading.current_thread().name == "lease":  # its requests depend on time
                    return send(client, path, *rest, **options)
                kind = f"{method} {_kind(path)}"
                with lock:
                    self.counts[kind] += 1
                    due = (kind, self.counts[kind]) == self._at
                if due and not self._after:
                    os.kill(os.getpid(), self._signal)
                answer = send(client, path, *rest, **options)
                if due and self._after:
                    os.kill(os.getpid(), self._signal)
                return answer

            return sent

        for method in ("get", "put", "delete", "copy", "list", "list_with_delimiter", "get_range"):
            setattr(obstore, method, watched(method, getattr(obstore, method)))


def _kind(path: Any) -> str:
    """Return the kind of an object, from its name below its store."""
    names = (path[0] if isinstance(path, list) else path or "").split("/")[2:]
    if len(names) < 2:
        return names[0] if names else "store"
    if names[0] == "log":
        return f"log/{names[1].partition('.')[2]}"
    inside = names[2:]
    part = next((name for name in ("commits", "c") if name in inside), inside[0] if inside else "")
    where = inside[0] if inside and inside[0] in ("lists", "runs") else ""
    return "/".join(name for name in (names[0], where, part) if name)


def _traced(requests: _Requests, work: Path, name: str, at: str) -> tuple[int, str]:
    requests.install()
    return _run(work, name, at)


def _copy(stage: str, to: str) -> None:
    """Copy all objects below one place of the bucket to another."""
    from boto3 import client

    service = client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for page in service.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"{stage}/"):
        for entry in page.get("Contents", ()):
            source = {"Bucket": _BUCKET, "Key": entry["Key"]}
            service.copy_object(Bucket=_BUCKET, Key=to + entry["Key"].removeprefix(stage), CopySource=source)


def _dealt(things: list[Any]) -> list[list[Any]]:
    return [things[first::_PROCESSES] for first in range(_PROCESSES)]


def _in_parallel(functions: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of the functions, each run in a separate process at the same time."""
    return [process.result() for process in [Forked(function) for function in functions]]


def _require(ended: tuple[int, str]) -> None:
    if ended[0]:
        raise RuntimeError(ended[1])
