"""Extreme and malformed values for every option and argument of every command: results or single sentences."""

import os
import random
import shutil
import signal
import traceback
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.cli.options import Size

pytestmark = pytest.mark.usefixtures("made_by_a_small_lm")

SEED = int(os.environ.get("KNNSTORE_EXTREMES_SEED", "0"))
VALUES_PER_OPTION = int(os.environ.get("KNNSTORE_EXTREMES", "1"))  # a larger number tries more of them
_LONGEST = 120  # seconds of one command, after which it hangs

NUMBERS = [
    "",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1",
    "-0.0",
    "1e400",
    "1e-320",
    "1" + "0" * 30,
    "0x10",
    "٣",
    "2147483648",
]
SIZES = [*NUMBERS, "1GBB", "-4GB", "4 G B", "1e30TB", "0.0001", "1e400GB", "1PB"]
TEXTS = [
    *(
        "",
        " ",
        "\x00",
        "x" * 5000,
        "-1",
        "nan",
        "a:b",
        "C:/books",
        "s3://",
        "s3://KEY:SECRET@bucket/x",
        "gs://",
        "az://",
    ),
    *(
        "file:///tmp/%00",
        "http://[",
        "\udcff",
        "../nowhere",
        "/dev/null",
        "/dev/zero",
        "~nobody/x",
        "[",
        "{}",
        "*",
        "**",
    ),
    *("\n", "\x1b[2J", "é" * 3000, "/proc/self/mem", "books/", "keys.knnstore", ".", "con", "1" + "0" * 30),
    *("tcp://127.0.0.1:1", "tcp://127.0.0.1:99999", "inproc://nowhere", "%s%n", "text\\", "$HOME", "a,b=c", "λ"),
]
# What each command is given besides the value that is tried.
BASE = {
    "ingest": ["--corpus", "books/", "--store", "new", "--workers", "0", "--context", "64"],
    "index": ["--nlist", "8"],
    "score": ["--k", "8"],
    "suffixes": [],
    "tune": ["saved.parquet"],
    "generate": ["--prompt", "The", "--max-new-tokens", "2", "--k", "4"],
    "neighbours": ["The", "--k", "2"],
    "attribute": ["--text", "books/", "--k", "4"],
    "explore": ["--port", "0", "--no-browser"],
    "info": [],
    "stores": [],
    "evaluate": [],
    "verify": [],
    "repair": [],
    "remove": ["--document", "*"],
    "compact": [],
    "log": [],
    "restore": [],
    "merge": ["books", "keys", "--into", "merged"],
    "subset": ["--sample", "50%", "--into", "part"],
    "import": ["--keys", "keys.npy", "--vals", "vals.npy", "--dim", "256"],
    "export": ["--to", "parquet", "--out", "out"],
    "demo": [],
}
STORE = {"index", "score", "suffixes", "tune", "generate", "neighbours", "attribute", "explore", "verify", "repair"}
STORE |= {"remove", "compact", "log", "restore", "export"}
CHANGE = {"ingest", "index", "suffixes", "tune", "repair", "remove", "compact", "restore", "merge", "subset", "export"}
CHANGE |= {"import", "score", "generate", "attribute"}


def cases():
    """Each option and argument of each command, with the values that are tried."""
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.name == "help"):
                continue
            kind = parameter.type
            pool = TEXTS
            if isinstance(kind, Size):
                pool = SIZES
            elif kind.name in ("integer", "float", "integer range", "float range"):
                pool = NUMBERS
            if parameter.name == "workers":
                pool = [value for value in NUMBERS if value not in ("1", "٣")]  # they would start some
            draw = random.Random(f"{SEED} {name} {parameter.name}")
            yield name, parameter, draw.sample(pool, min(VALUES_PER_OPTION, len(pool)))


def arguments(name, parameter, value):
    """The command line of a command on the store ``books``, with one value in the place of its own."""
    given, base = [*BASE[name]], [*(["--store", "books"] if name in STORE else [])]
    if isinstance(parameter, click.Option):
        option = parameter.opts[-1]
        for words in (given, base):
            if option in words:
                at = words.index(option)
                del words[at : at + 2]
        return [name, *given, *base, f"{option}={value}"]
    if name == "merge":
        return [name, "books", *given[1:], *base, "--", value]
    leading = 1 if name in ("tune", "neighbours") else 0
    return [name, *given[leading:], *base, "--", value]


@contextmanager
def alarm(seconds):
    """Raise TimeoutError in the middle of whatever takes longer."""

    def ring(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def here(small_reference, tmp_path_factory):
    """A folder to work in, a function that makes it as it was, and what keeps commands from serving for ever."""
    import dask

    from knnstore.scheduling import clusters

    folder = tmp_path_factory.mktemp("extremes")
    saved = folder.parent / "extremes.parquet"

    def renew():
        os.chdir(folder.parent)
        shutil.rmtree(folder)
        shutil.copytree(small_reference, folder)
        if saved.exists():
            shutil.copy(saved, folder / "saved.parquet")
        for name in ("keys.npy", "vals.npy"):
            (folder / name).write_bytes(bytes(4096))
        os.chdir(folder)

    with pytest.MonkeyPatch.context() as patch, dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr("knnstore.explore.serve.serve", lambda *_: None)  # it would serve until it is interrupted
        patch.setattr("knnstore.demo.demo.__defaults__", (20_000,))  # of text
        # a scheduler that isn't there is waited for less long
        patch.setitem(clusters.cluster_runner.__wrapped__.__kwdefaults__, "patience", 0.5)
        renew()
        scored = CliRunner().invoke(main, ["score", "--store", "books", "--k", "8", "--save-neighbours", str(saved)])
        assert scored.exit_code == 0, scored.output
        renew()
        yield folder, renew
        os.chdir(folder.parent)


def fault(done):
    """What is wrong with how a command ended, or None."""
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        return "".join(traceback.format_exception(error))[-1500:]
    if done.exit_code not in (0, 1, 2):
        return f"exit code {done.exit_code}"
    if "Traceback" in done.output:
        return done.output[-1500:]
    if "\x1b" in done.output or "SECRET" in done.output:
        return f"printed as it came: {done.output[-300:]!r}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.exit_code and not any(line.startswith("Error: ") or ": error: " in line for line in lines):  # argparse's
        return f"no sentence: {done.stderr[-300:]!r}"
    return None


@pytest.mark.parametrize("name", list(main.commands))
def test_any_value_of_any_option_ends_in_a_result_or_in_one_sentence(here, name):
    _, renew = here
    faults = []
    for command, parameter, values in cases():
        if command != name:
            continue
        for value in values:
            words = arguments(command, parameter, value)
            try:
                with alarm(_LONGEST):
                    done = CliRunner().invoke(main, words)
                wrong = fault(done)
            except TimeoutError as error:
                wrong = str(error)
            if wrong:
                faults.append(f"knnstore {' '.join(map(repr, words))[:300]}\n{wrong}")
            if name in CHANGE and (wrong or done.exit_code == 0):
                renew()
    assert not faults, "\n\n".join([f"{len(faults)} faults", *faults])


def test_every_command_has_a_line_to_start_from():
    assert set(BASE) == set(main.commands)
