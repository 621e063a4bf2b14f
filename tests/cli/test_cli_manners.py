"""The command line's manners: quick to answer, quiet when piped, JSON for scripts."""

import json
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from knnstore import __version__
from knnstore.cli import main


@pytest.mark.parametrize("arguments", [["--help"], ["ingest", "-h"], ["index", "--help"], ["score", "--help"]])
def test_help_needs_no_heavy_library(arguments):
    code = (
        "import sys, knnstore.cli\n"
        "try:\n    knnstore.cli.main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'faiss', 'zarr', 'dask', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("Usage: ")
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_there_at_once(knnstore, tmp_path):
    best = min(_cpu_seconds(knnstore, tmp_path) for _ in range(3))
    assert best < 1


def _cpu_seconds(knnstore, folder):
    """What the process takes itself: how long it waits for a core says nothing about it."""
    before = os.times()
    assert knnstore(folder, "--help").returncode == 0
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_shows_the_three_commands_and_every_default(knnstore):
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert [name in text for name in ("ingest", "index", "score")] == [True] * 3
    assert "default: 0.01" in CliRunner().invoke(main, ["ingest", "--help"]).stdout


def test_the_version_is_the_packages():
    assert CliRunner().invoke(main, ["--version"]).stdout.strip().endswith(__version__)


@pytest.mark.parametrize("arguments", [["ingest"], ["nonsense"], ["index", "--nonsense"], ["score", "stray"]])
def test_a_command_that_does_not_exist_is_a_usage_error(arguments):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "Error: " in done.stderr


def test_piped_output_has_no_bars_and_no_control_characters(built):
    for done in built[1]:
        assert not re.search(r"[\r\x1b]|it/s|%\|", done.stdout + done.stderr)


def test_results_go_to_stdout_and_the_rest_to_stderr(built):
    ingest, index, score = built[1]
    assert ingest.stdout.startswith("store ")
    assert "corpus " in ingest.stderr
    assert index.stdout.endswith("next      knnstore score --store books\n")
    assert "perplexity" in score.stdout
    assert "perplexity" not in score.stderr


@pytest.fixture
def here(built, monkeypatch):
    monkeypatch.chdir(built[0])


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "--corpus", "books/", "--workers", "0"],
        ["index", "--nlist", "4096"],
        ["index", "--nlist", "4096", "--dry-run"],
        ["score"],
    ],
    ids=" ".join,
)
def test_json_is_one_object_and_quiet_says_nothing_else(here, arguments):
    done = CliRunner().invoke(main, [*arguments, "--json", "--quiet"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stdout.count("\n") == 1


def test_the_corpus_may_be_several_paths_as_a_shell_gives_them(here, tmp_path):
    files = ["books/compound.txt", "books/types.txt"]
    arguments = ["ingest", "--workers", "0", "--store", str(tmp_path / "two"), "--json", "--quiet", "--corpus", *files]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["documents"] == 2
