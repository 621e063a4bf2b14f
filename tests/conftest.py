"""Fixtures that more than one test file needs."""

import ast
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from knnstore.scheduling import Job, SerialRunner, available_cores

# The arrays here are tiny, and OpenMP threads that spin while they wait for each other make faiss' k-means several
# times slower on a busy machine. Set before torch and faiss are imported, and inherited by commands that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The last bits of a product depend on how many threads share it, and the workers of the clusters here have two each.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# What one process of the suite takes with the commands and workers that its tests start.
BYTES_PER_PROCESS = 3 * 10**9

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes run the suite with ``-n auto``: one more than there are cores, if there is memory for it.

    Tests wait for workers, servers, leases and disks, and the cores are idle for a third of the time otherwise.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # a container may have less; "max" is no number
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1, min(available_cores() + 1, memory // BYTES_PER_PROCESS))


# Files whose few tests take minutes: begun first, so that no process is left alone with them at the end.
SLOWEST = ("test_oracle.py", "test_memory.py", "test_killed.py", "test_cli_extremes.py", "test_experiments.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, and everything else in the order in which it was collected."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """Commands set variables for their workers; the next test must not inherit them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora, models and the reference scorer, which some checkouts have beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``books/``: eight documents of some 2,000 characters of English each. Read only: copy before changing it."""
    source = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    assignment = next(node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.Assign))
    topics = ast.literal_eval(assignment.value)
    folder = tmp_path_factory.mktemp("tiny") / "books"
    folder.mkdir()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name))[:8]:
        (folder / f"{name}.txt").write_text(topics[name][:2000], encoding="utf-8")
    return folder


def _run_knnstore(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "knnstore", *map(str, arguments)]
    # offline, so that a name that is no model is looked up on no hub
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | environment
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def knnstore() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``knnstore(folder, *arguments, **environment)``: the command as if typed in a folder."""
    return _run_knnstore


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.exc_info:
            self.words.append(self.format(record))


@pytest.fixture
def logged_by_dask() -> Iterator[list[str]]:
    """Warnings, errors and tracebacks that Dask and its event loop log, which a command would print to stderr."""
    import distributed  # noqa: F401 - makes the loggers

    names = [name for name in logging.Logger.manager.loggerDict if name.startswith(("distributed", "tornado"))]
    records = _Records()
    loggers = [logging.getLogger(name) for name in [*names, "asyncio"]]
    loggers = [logger for logger in loggers if logger.handlers or logger.parent is logging.root]
    for logger in loggers:
        logger.addHandler(records)
    yield records.words
    for logger in loggers:
        logger.removeHandler(records)


def _bytes_of(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if "log/" not in name}


@pytest.fixture(scope="session")
def bytes_of() -> Callable[[Path], dict[str, bytes]]:
    """``bytes_of(store)``: every file of a store but its lock and its log of who and when, to compare stores."""
    return _bytes_of


@dataclass(frozen=True)
class CountingRunner(SerialRunner):
    """Runs tasks here, counts those of each function that ended, and raises in place of the one after ``most``."""

    most: int | None = None
    ran: Counter[str] = field(default_factory=Counter)

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            if self.most is not None and self.ran.total() == self.most:
                raise InterruptedError(f"after {self.most} tasks, on purpose")
            result = function(task)
            self.ran[function.__name__] += 1
            yield result


@pytest.fixture(scope="session")
def counting_runner() -> type[CountingRunner]:
    """The runner that counts, and stops where it is told to."""
    return CountingRunner


@contextmanager
def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder for the whole run, and whether it is still to be made: one process makes it while the others wait."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    folder, done = run / name, run / f"{name}.done"
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if missing := not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("KNNSTORE_MODEL", raising=False)  # whichever test asks first
            yield folder, missing
        done.touch()


@pytest.fixture(scope="session")
def small_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LM of two narrow layers with random weights and the tokenizer of the shipped LM, for tests of the store."""
    with _made_once(tmp_path_factory, "small-lm") as (folder, missing):
        if missing:
            sys.path.append(str(REPOSITORY / "tools"))
            from faults.material import make_model

            make_model(folder, layers=2, width=64, positions=256)
    return folder


@pytest.fixture(scope="module")
def made_by_a_small_lm(small_lm: Path) -> Iterator[None]:
    """Commands and jobs of a file take the small LM by themselves: it makes keys in a sixth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNNSTORE_MODEL", str(small_lm))
        yield


@pytest.fixture(scope="session")
def built(
    tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory, knnstore: Callable[..., Any]
) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """A folder with ``books/`` in which the README's three commands were typed, and what each said. Read only."""
    commands = (
        "ingest --corpus books/",
        "index --nlist 4096",
        "score --model wiki-lm --store books",
    )
    with _made_once(tmp_path_factory, "typed") as (folder, missing):
        said = folder.with_suffix(".json")
        if missing:
            shutil.copytree(tiny_corpus, folder / "books")
            done = [knnstore(folder, *command.split()) for command in commands]
            said.write_text(json.dumps([[one.args, one.returncode, one.stdout, one.stderr] for one in done]))
        return folder, [subprocess.CompletedProcess(*one) for one in json.loads(said.read_text())]


@pytest.fixture(scope="session")
def small_reference(small_lm: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``books/``, three documents, and their store of a few chunks by the small LM. Read only.

    ``keys.knnstore`` is the store before it was indexed, ``books.knnstore`` after. The folder is to be worked in: the
    store knows its corpus as ``books/``. Files that use it also use ``made_by_a_small_lm``.
    """
    from knnstore.datastore.store import Datastore
    from knnstore.indexes.work import IndexOptions
    from knnstore.indexing.job import build_index
    from knnstore.ingestion.job import ingest
    from knnstore.ingestion.plan import IngestOptions

    with _made_once(tmp_path_factory, "small") as (folder, missing), pytest.MonkeyPatch.context() as patch:
        if missing:
            (folder / "books").mkdir()
            for file in sorted(tiny_corpus.iterdir())[:3]:
                shutil.copy(file, folder / "books")
            patch.chdir(folder)
            ingest(IngestOptions(corpus=("books/",), model=str(small_lm), chunk_rows=512, context=128), Job())
            shutil.copytree("books.knnstore", "keys.knnstore")
            options = IndexOptions(nlist=32, pq_bytes=8)
            build_index(Datastore(folder / "books.knnstore"), options, Job())
    return folder


@pytest.fixture(scope="session")
def two_stores(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``a/`` and ``b/``, half of ``books/`` each, the indexed stores of both, and ``text/``.

    The text is two documents out of ``a/``, in part. Read only.
    """
    from knnstore.datastore.store import Datastore
    from knnstore.indexes.work import IndexOptions
    from knnstore.indexing.job import build_index
    from knnstore.ingestion.job import ingest
    from knnstore.ingestion.plan import IngestOptions

    files = sorted(tiny_corpus.iterdir())
    with _made_once(tmp_path_factory, "two") as (folder, missing):
        if not missing:
            return folder
        (folder / "text").mkdir()
        for number, file in enumerate(files[:2]):
            (folder / "text" / f"{number}.txt").write_text(file.read_text()[200:900], encoding="utf-8")
        for name, part in (("a", files[:4]), ("b", files[4:])):
            (folder / name).mkdir()
            for file in part:
                shutil.copy(file, folder / name)
            store = folder / f"{name}.knnstore"
            options = IngestOptions(corpus=(str(folder / name),), store=str(store), model="wiki-lm", holdout=0)
            ingest(options, Job())
            build_index(Datastore(store), IndexOptions(pq_bytes=8), Job())
    return folder
