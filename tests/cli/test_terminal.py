"""What a terminal can't show costs no result: characters, columns, and commands to paste."""

import fcntl
import io
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from ast import literal_eval
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from knnstore.cli import main
from knnstore.cli.output import show_json
from knnstore.cli.report.words import gain_words, shown_store, table
from knnstore.terminal import columns, escaped, fit, never_fail_on_characters
from knnstore.wording import command, speaking

PACKAGE = Path(__file__).resolve().parents[2] / "knnstore"


def stream_of(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    never_fail_on_characters(stream)
    return stream


def written(stream):
    stream.flush()
    return stream.buffer.getvalue()


@given(st.text(), st.sampled_from(["latin-1", "ascii", "cp1252", "utf-8", "koi8-r"]))
def test_every_text_can_be_written_in_every_encoding(text, encoding):
    stream = stream_of(encoding)
    stream.write(text)
    assert written(stream) or not text


def test_what_an_encoding_lacks_is_written_in_plain_letters_or_escaped():
    stream = stream_of("latin-1")
    stream.write("λ 0.5 × 2 … ▸käse◂ 語 \udcff")
    assert written(stream).decode("latin-1") == "lambda 0.5 × 2 ... >käse< \\u8a9e \\udcff"


@given(st.text(), st.sampled_from(["latin-1", "utf-8"]))
def test_json_says_the_same_in_every_encoding_and_without_control_characters(text, encoding):
    stream = stream_of(encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        show_json({"text": text})
    line = written(stream).decode(encoding)
    assert json.loads(line)["text"] == text
    assert escaped(line) == line


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_score_is_printed_whole_in_an_encoding_without_lambda(built, encoding, monkeypatch):
    monkeypatch.chdir(built[0])
    done = CliRunner(charset=encoding).invoke(main, ["score", "--quiet"])
    assert (done.exit_code, done.exception) == (0, None)
    assert re.search(r"^setting +k \d+, (lambda|λ) ", done.stdout_bytes.decode("utf-8", "replace"), re.MULTILINE)
    assert "speed" in done.stdout_bytes.decode("utf-8", "replace")


def lines_at(width, *command, folder):
    """The lines that a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "knnstore", *command], cwd=folder, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 2**16):
                text += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    assert run.returncode == 0
    return text.decode().replace("\r\n", "\n").split("\n")


def test_what_is_printed_fits_a_narrow_terminal_but_for_commands_to_paste(built):
    lines = lines_at(40, "info", folder=built[0])
    assert any(line.startswith("store") for line in lines)
    assert any(line.startswith("next ") for line in lines)
    assert [line for line in lines if len(line) > 40 and not line.startswith("next ")] == []


def test_where_there_is_no_terminal_lines_are_left_as_they_are():
    assert columns(io.StringIO()) == 100
    line = "text      " + "words " * 40
    assert fit(line, io.StringIO()) == line


def test_a_table_that_is_too_wide_becomes_lines_of_its_cells(monkeypatch):
    rows = [("", "perplexity", "bits/byte"), ("LM alone", "375.14", "2.4580")]
    assert table(rows) == ["          perplexity  bits/byte", "LM alone      375.14     2.4580"]
    monkeypatch.setattr("knnstore.cli.report.words.fits", lambda width: width <= 25)
    assert table(rows) == ["LM alone", "  perplexity  375.14", "  bits/byte   2.4580"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_a_printed_command_is_read_by_a_shell_as_it_was_meant(name):
    with speaking(shell=True):
        line = literal_eval(command("index", store=name))
    assert shlex.split(line) == ["knnstore", "index", "--store", name]
    assert shlex.split(f"knnstore index --store {shown_store(Path(name))}")[-1:] == [
        str(Path(name)).removesuffix(".knnstore")
    ]


def test_no_command_that_is_printed_names_a_path_unquoted():
    commands = "|".join(main.commands)
    raw = re.compile(rf"knnstore (?:{commands}) [^'\"]*--[a-z-]+ \{{(?!shown)[^\"]*")
    sources = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [f"{path}: {match[0]}" for path, text in sources.items() for match in raw.finditer(text)] == []


def test_the_next_command_of_a_store_with_a_space_can_be_pasted(built, tmp_path, monkeypatch):
    monkeypatch.chdir(built[0])
    runner, store = CliRunner(), tmp_path / "my books"
    done = runner.invoke(
        main, ["ingest", "--corpus", next(map(str, Path("books").iterdir())), "--store", str(store), "--workers", "0"]
    )
    assert done.exit_code == 0, done.output
    ran = 0
    while (match := re.search(r"^next +knnstore (index .*)$", done.stdout, re.MULTILINE)) and not ran:
        done, ran = runner.invoke(main, shlex.split(match[1])), ran + 1
    assert (ran, done.exit_code) == (1, 0), done.output
    assert f"next      knnstore score --store '{store}'" in done.stdout


@pytest.mark.parametrize(
    ("percent", "words"),
    [
        (12.34, "12.3 % lower perplexity"),
        (0.04, "no gain: same perplexity as the LM alone"),
        (-0.04, "no gain: same perplexity as the LM alone"),
        (-3.21, "no gain: 3.2 % higher perplexity than the LM alone"),
    ],
)
def test_no_gain_and_a_loss_are_called_by_their_names(percent, words):
    assert gain_words(percent) == words
