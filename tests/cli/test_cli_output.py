"""What a stranger's store or folder is named or says can't act on the terminal."""

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

import knnstore.cli
from knnstore.cli import main
from knnstore.progress import TerminalReporter
from knnstore.terminal import escaped

CLEAR = "\x1b[2J"


def test_control_characters_are_escaped_and_text_is_left_alone():
    assert escaped(f"a\tb\n{CLEAR}\r\x9b\x7f\u202e") == r"a" + "\tb\n" + r"\x1b[2J\r\x9b\x7f\u202e"
    assert escaped("λ – 漢字\xa0\u3000é") == "λ – 漢字\xa0\u3000é"


def test_commands_print_through_one_module_that_escapes():
    folder = Path(knnstore.cli.__file__).parent
    prints = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("echo", "secho")) or getattr(node, "id", "") == "print"
    }
    assert prints == {"output.py"}


def test_errors_results_and_progress_are_escaped(tmp_path, capsys):
    folder = tmp_path / f"{CLEAR}.knnstore"
    folder.mkdir()
    (folder / "knnstore.json").write_text("{")
    for command in (["info", "--store", str(folder)], ["stores", str(tmp_path)], ["ingest", "--corpus", f"{CLEAR}x"]):
        done = CliRunner().invoke(main, command)
        assert "\x1b" not in done.output
        assert r"\x1b[2J" in done.output
    TerminalReporter().say(f"corpus {CLEAR}")
    assert capsys.readouterr().err == "corpus \\x1b[2J\n"


@pytest.mark.parametrize("field", ["when", "who", "what", "kind"])
def test_the_log_of_a_stranger_is_escaped(tmp_path, field):
    from index_stores import clustered_keys, make_store

    from knnstore.files import load_json, write_json

    make_store(tmp_path / "a.knnstore", [clustered_keys(20, 8)])
    path = tmp_path / "a.knnstore" / "log" / "000001.json"
    write_json(path, load_json(path) | {field: f"{CLEAR}now"})
    done = CliRunner().invoke(main, ["log", "--store", str(tmp_path / "a.knnstore")])
    assert (done.exit_code, "\x1b" in done.output) == (0, False)
