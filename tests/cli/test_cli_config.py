"""``knnstore.toml`` gives defaults; shells complete commands, options and stores."""

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from knnstore.cli import main


def run(*arguments, code=0, **environment):
    done = CliRunner().invoke(main, arguments, env=environment)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KNNSTORE_CONFIG", raising=False)
    return tmp_path


def config(folder, text, name="knnstore.toml"):
    (folder / name).write_text(text, encoding="utf-8")


def test_what_is_typed_wins_over_the_file_and_the_file_over_the_default(here):
    (here / "books").mkdir()
    config(here, '[ingest]\ncorpus = "books/"\nholdout = 7\n')
    assert "--holdout 7 is not a share" in run("ingest", code=2)
    assert "--holdout 8 is not a share" in run("ingest", "--holdout", "8", code=2)
    config(here, '[ingest]\ncorpus = ["books/", "more/"]\n')
    assert "no text found in 'books/'" in run("ingest", "--corpus", "books/", code=2)


def test_the_help_shows_the_defaults_of_the_file(here):
    config(here, 'memory = "8GB"\n[ingest]\nkey_dtype = "float16"\n')
    helped = " ".join(run("ingest", "--help").split())
    assert "[default: float16]" in helped
    assert "[default: 8GB]" in helped
    assert "[default: 8GB]" in " ".join(run("index", "--help").split())  # at the top: for every command that has it


def test_another_file_can_be_named(here):
    config(here, '[index]\nmemory = "9GB"\n', "other.toml")
    for arguments, environment in ((["--config", "other.toml"], {}), ([], {"KNNSTORE_CONFIG": "other.toml"})):
        assert "[default: 9GB]" in " ".join(run(*arguments, "index", "--help", **environment).split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[ingest]\nkeydtype = 'int8'",
            "[ingest] keydtype isn't an option of 'knnstore ingest'; did you mean 'key-dtype'?",
        ),
        ("memori = '8GB'", "'memori' isn't an option of any command; did you mean 'memory'?"),
        ("[ingst]\nmemory = '8GB'", "[ingst] isn't a command; did you mean 'ingest'?"),
        ("[ingest]\nmemory = 'lots'", "[ingest] memory = 'lots': 'lots' is not a size"),
        ("[ingest]\nkey-dtype = 'int4'", "[ingest] key-dtype = 'int4'"),
        ("[score]\nk = true", "[score] k = True: expected a value"),
        ("[score]\nexact = 'yes'", "expected true or false"),
        ("[score]\nk = [1, 2]", "expected a single value"),
        ("[ingest]\noverwrite = true", "discards finished work"),
        ("[ingest", "isn't valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_whatever_the_command(here, text, told):
    config(here, text)
    error = run("stores", code=2)
    assert told in error
    assert "knnstore.toml" in error


def test_a_mistyped_command_or_option_is_told_what_was_meant(here):
    assert "'ingest'" in run("ingset", code=2)
    assert "--nlist" in run("index", "--nlst", "3", code=2)


def complete(words, folder, count=None):
    """What bash would offer for the last of the words."""
    code = "from knnstore.cli import main; main(prog_name='knnstore')"
    count = len(words.split(" ")) - 1 if count is None else count
    variables = {"_KNNSTORE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_the_shell_completes_commands_options_and_stores(here):
    for name in ("books", "wiki"):
        (here / f"{name}.knnstore").mkdir()
        (here / f"{name}.knnstore" / "knnstore.json").write_text("{}")
    assert complete("knnstore in", here) == {"ingest", "index", "info"}
    assert "--nlist" in complete("knnstore index --nl", here)
    assert complete("knnstore score --store ", here) == {"books", "wiki"}
    assert complete("knnstore info w", here) == {"wiki"}
    assert complete("knnstore import --key-type ", here) == {"float16", "float32"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(here, shell):
    code = "from knnstore.cli import main; main(prog_name='knnstore')"
    environment = os.environ | {"_KNNSTORE_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "_KNNSTORE_COMPLETE" in done.stdout


def test_every_command_that_takes_a_store_completes_its_name(here, monkeypatch):
    monkeypatch.chdir(here)
    for name in ("wiki", "books"):
        (here / f"{name}.knnstore").mkdir(exist_ok=True)
        (here / f"{name}.knnstore" / "knnstore.json").touch()
    found = {
        f"{name} {parameter.name}": [item.value for item in parameter.shell_complete(click.Context(command), "")]
        for name, command in main.commands.items()
        for parameter in command.params
        if parameter.name in ("store", "stores")
    }
    assert len(found) > 15
    assert {name: names for name, names in found.items() if names != ["books", "wiki"]} == {}
