"""Where commands write their results: refused before any work where that can't be."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from knnstore.cli.commands import main
from knnstore.cli.options import OutputFile, OutputFolder

OUTPUTS = [
    (name, option)
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option.type, OutputFolder)
]
BOOKS = ("books", "a:b", "C:/books")


def test_every_option_that_writes_a_result_is_known():
    written = {
        (name, option.opts[0])
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and (option.help or "").startswith(("Write ", "Folder to w"))
    }
    assert written == {(name, option.opts[0]) for name, option in OUTPUTS}


@pytest.mark.parametrize("url", ["s3://bucket/place", "gs://bucket/place", "https://host/place"])
@pytest.mark.parametrize(("name", "option"), OUTPUTS, ids=[f"{name} {option.opts[0]}" for name, option in OUTPUTS])
def test_a_url_is_refused_before_any_work(name, option, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [name, option.opts[0], url])
    assert done.exit_code == 2
    assert f"{option.opts[0]} {url}: results are written to local files only" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, option in OUTPUTS if isinstance(option.type, OutputFile)]
)
def test_a_file_in_a_folder_that_is_not_there_is_refused_before_any_work(name, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [name, option.opts[0], "nowhere/result"])
    assert done.exit_code
    assert f"{option.opts[0]} nowhere/result" in done.stderr
    assert not isinstance(done.exception, FileNotFoundError)


@pytest.mark.parametrize("place", BOOKS)
def test_a_name_with_a_colon_is_a_name(place, two_stores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(place).parent.mkdir(exist_ok=True)
    store = str(two_stores / "a.knnstore")
    text = str(two_stores / "text" / "0.txt")
    written = ["--save-neighbours", f"{place}.parquet", "--per-token", f"{place}.tokens", "--report", f"{place}.html"]
    for arguments in (
        ["subset", store, "--sample", "50%", "--into", place],
        ["score", "--store", place, "--text", text, "--k", "8", *written],
        ["tune", f"{place}.parquet", "--store", place],
        ["export", "--store", place, "--to", "parquet", "--out", f"{place}.out"],
        ["export", "--store", place, "--out", f"{place}.out"],
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, (arguments, done.stderr, done.exception)
    found = CliRunner().invoke(main, ["verify", "--store", place, "--json"])
    assert json.loads(found.stdout)["damages"] == []
