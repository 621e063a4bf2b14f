"""Messages name parameters as their reader writes them: ``nlist=`` in Python, ``--nlist`` on the command line."""

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import knnstore
from knnstore.cli import main
from knnstore.errors import KnnstoreError, ResourceError, UsageError
from knnstore.scheduling import worker
from knnstore.wording import command, option, speaking

PACKAGE = Path(__file__).resolve().parent.parent / "knnstore"
LIBRARY = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).with_suffix("").parts[0] not in {"cli", "wording"}
]
PARAMETERS = [parameter for each in (main, *main.commands.values()) for parameter in each.params]
FLAGS = {flag for parameter in PARAMETERS for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
WORDING = {"option", "command", "about"}


def flags_in(source: str) -> list[str]:
    return [flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", source) if flag in FLAGS]


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call of the functions that name parameters and commands."""
    for node in ast.walk(tree):
        name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in WORDING:
            yield node


def made_on_import(tree: ast.AST) -> Iterator[ast.Call]:
    """Such calls outside all functions, default values included, where the language isn't known yet."""
    inside = {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        for part in (node.body if isinstance(node.body, list) else [node.body])
        for call in calls(part)
    }
    yield from (call for call in calls(tree) if id(call) not in inside)


def literal(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_names_no_flag(path: Path) -> None:
    assert flags_in(path.read_text(encoding="utf-8")) == []


def test_flags_are_found_and_other_programs_flags_are_not() -> None:
    assert flags_in("f'--nlist {n}' # see --no-check\n'''``--store``'''") == ["--nlist", "--no-check", "--store"]
    assert flags_in("pip install --upgrade x; dask --memory-limit 1; a--store") == []


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_messages_name_exists(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    commands, parameters = set[tuple[str, frozenset[str]]](), set[tuple[str, bool]]()
    for call in calls(tree):
        first = literal(call.args[0]) if call.args else None
        if getattr(call.func, "id", "") == "command":
            given = frozenset(each.arg for each in call.keywords if each.arg)
            commands |= {(first, given)} if first else set()
            parameters |= {(name, True) for name in given}
        elif first:
            parameters.add((first, "False" not in map(ast.unparse, call.args[1:2])))
    with speaking(shell=False):
        for name, given in commands:
            function = getattr(knnstore, command(name).removeprefix("knnstore.").removesuffix("()"))
            assert given - {"help"} <= inspect.signature(function).parameters.keys()
    assert {name for name, _ in commands} <= main.commands.keys()
    with speaking(shell=True):
        assert [name for name, on in parameters if option(name, on) not in FLAGS] == []
    assert [ast.unparse(call) for call in made_on_import(tree)] == []


def test_words_that_are_made_on_import_are_found() -> None:
    source = "HINT = option('nlist')\ndef f(a=option('store')):\n    return option('k'), (lambda: command('index'))"
    assert [ast.unparse(call) for call in made_on_import(ast.parse(source))] == ["option('nlist')", "option('store')"]


@pytest.mark.parametrize(
    ("name", "value", "python", "shell"),
    [
        ("nlist", None, "nlist=", "--nlist"),
        ("nlist", 64, "nlist=64", "--nlist 64"),
        ("lambda_", 0.25, "lambda_=0.25", "--lambda 0.25"),
        ("train_sample", 10, "train_sample=10", "--train-sample 10"),
        ("errors", "skip", "errors='skip'", "--errors skip"),
        ("memory", "1.0 GB", "memory='1.0 GB'", "--memory 1.0 GB"),
        ("overwrite", True, "overwrite=True", "--overwrite"),
        ("check", False, "check=False", "--no-check"),
        ("tuned", False, "tuned=False", "--retune"),
        ("exclude", ["*.c", "a"], "exclude=['*.c', 'a']", "--exclude '*.c' --exclude a"),
    ],
)
def test_a_parameter_is_named_as_its_reader_writes_it(name: str, value: object, python: str, shell: str) -> None:
    assert option(name, value) == python
    with speaking(shell=True):
        assert option(name, value) == shell
    assert option(name, value) == python


def test_a_command_can_be_pasted() -> None:
    assert command("index", overwrite=True) == "knnstore.index(overwrite=True)"
    assert command("tune", "FILE") == "knnstore.tune('FILE')"
    assert command("import") == "knnstore.import_()"
    assert command("ingest", help=True) == "help(knnstore.ingest)"
    assert command("merge", "ONE", "OTHER", into="NEW") == "knnstore.merge(['ONE', 'OTHER'], into='NEW')"
    with speaking(shell=True):
        assert command("index", overwrite=True) == "'knnstore index --overwrite'"
        assert command("index", store="my books") == '''"knnstore index --store 'my books'"'''
        assert command("merge", "ONE", "OTHER", into="NEW") == "'knnstore merge ONE OTHER --into NEW'"


@pytest.mark.parametrize("shell", [False, True])
def test_an_error_about_a_parameter_carries_it_through_a_pickle(shell: bool) -> None:
    with speaking(shell=shell):
        raised = ResourceError.about("memory", "1.0 GB", "is too little", limit=2 * 10**9, remedy="give 2.0 GB")
    error = pickle.loads(pickle.dumps(raised))
    assert type(error) is ResourceError
    subject = "--memory 1.0 GB" if shell else "memory='1.0 GB'"
    assert str(error) == f"{subject} is too little: give 2.0 GB"
    assert (error.field, error.value, error.limit, error.remedy) == ("memory", "1.0 GB", 2 * 10**9, "give 2.0 GB")


def test_a_mistake_is_told_in_the_language_in_which_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["ingest", "--corpus", "books", "--holdout", "7"])
    assert done.stderr == "Error: --holdout 7 is not a share between 0 and 1: 0.01 holds out one in 100\n"
    with pytest.raises(UsageError, match=r"^holdout=7 is not a share between 0 and 1: 0\.01 holds out") as caught:
        knnstore.ingest("books", holdout=7)
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("holdout", 7, 1)


def test_an_error_about_no_parameter_has_none() -> None:
    error = pickle.loads(pickle.dumps(UsageError("no corpus")))
    assert (str(error), error.field, error.value, error.limit, error.remedy) == ("no corpus", None, None, None, "")
    assert str(KnnstoreError.about("nprobe", 0, "is not positive")) == "nprobe=0 is not positive"


def test_a_task_speaks_the_language_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "prepare", lambda terms: None)
    with speaking(shell=True):
        terms = pickle.loads(pickle.dumps(worker.Terms()))
    assert worker.call(terms, option, "nlist", 64) == "--nlist 64"
    assert worker.call(worker.Terms(), option, "nlist", 64) == "nlist=64"
