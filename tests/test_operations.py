"""Every command is a function, with the names and the defaults of the command line."""

import importlib
import inspect
import keyword

import click
import pytest

import knnstore
from knnstore.api import Sampling, Store
from knnstore.cli import main
from knnstore.scoring.options import ScoreOptions

# Methods of Store, which keeps the LM loaded, and where the rest of their options are given.
READS_TEXT = {
    "attribute": (Store.attribute, Store.joined, ScoreOptions),
    "generate": (Store.generate, Store.joined, Sampling),
    "neighbours": (Store.neighbours,),
}
FOR_PEOPLE = {"demo", "evaluate", "explore"}  # see the package's docstring
# How a result is printed, a setting of the process, and further values of the option before it.
OF_THE_COMMAND_LINE = {"json", "quiet", "store_cache", "more", "explain"}
OF_A_STORE = {"compact", "export", "index", "info", "log", "remove", "repair", "restore", "score", "subset", "suffixes"}


def name_of(parameter: click.Parameter) -> str:
    name = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def default_of(parameter: click.Parameter, context: click.Context) -> object:
    if parameter.required:
        return inspect.Parameter.empty
    default = parameter.get_default(context, call=False)
    if isinstance(default, str | int | float):  # click has a value of its own for an option without a default
        return default
    return () if getattr(parameter, "multiple", False) and name_of(parameter) != "store" else None


def options_of(command: click.Command) -> dict[str, object]:
    context = click.Context(command)
    named = {name_of(parameter): parameter for parameter in command.params if parameter.name != "name"}
    return {
        name: default_of(parameter, context) for name, parameter in named.items() if name not in OF_THE_COMMAND_LINE
    }


def operation_of(command: str):
    name = f"{command}_" if keyword.iskeyword(command) else command
    return getattr(importlib.import_module(f"knnstore.operations.{name}"), name)


@pytest.mark.parametrize("command", sorted(main.commands.keys() - READS_TEXT.keys() - FOR_PEOPLE))
def test_a_command_is_a_function_with_its_names_and_defaults(command):
    operation = operation_of(command)
    parameters = inspect.signature(operation).parameters
    given = {name: parameter.default for name, parameter in parameters.items() if name != "reporter"}
    assert given == options_of(main.commands[command])
    assert getattr(knnstore, operation.__name__) is operation


@pytest.mark.parametrize("command", READS_TEXT)
def test_a_command_that_reads_text_is_a_method_with_its_names(command):
    given = set().union(*(inspect.signature(part).parameters for part in (knnstore.open, *READS_TEXT[command])))
    names = {name.removeprefix("sampling_") for name in options_of(main.commands[command])}
    assert names - given == set()


@pytest.mark.parametrize("command", sorted(READS_TEXT.keys() | OF_A_STORE | {"tune", "verify"}))
def test_what_concerns_one_store_is_a_method(command):
    assert callable(getattr(Store, command))


def test_a_store_is_made_and_changed_without_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for name, words in (("a", "a mill by the river"), ("b", "the sea below a cliff")):
        (tmp_path / "books" / f"{name}.txt").write_text(f"Here is {words}. " * 40)
    report = knnstore.ingest("books/", holdout=0, workers=0, context=64)
    assert report.documents == 2
    with knnstore.open("books") as store:
        assert store.index(nlist=4, dry_run=True).nlist == 4
        assert store.index(nlist=4).built
        assert store.search(store.key("the sea")[None], 1).rows.shape == (1, 1)
        before = len(store)
        removal = store.remove(document="books/a.txt", note="as an example")
        assert before - len(store) == removal.removed.rows > 0
        assert store.restore().rows == len(store) == before
        store.remove(document=["books/a.txt"], now=True)
        assert [change.kind for change in store.log().changes][-1] == "compact"
        assert store.verify().intact
        assert store.info().live_rows == len(store)
    assert [summary.name for summary in knnstore.stores()] == ["books"]
