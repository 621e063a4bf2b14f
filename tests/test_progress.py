"""Progress that fits where it is read: a bar in a terminal or a notebook, a line a minute in a log, else nothing."""

import io
import sys
from types import SimpleNamespace

import pytest

from knnstore.progress import LogLines, Reporter, TerminalReporter, duration, in_notebook


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_a_minute_with_rate_and_time_left():
    seconds, stream = iter([0.0, 30.0, 61.0, 90.0, 122.0]), io.StringIO()
    advance = LogLines("keys", 1000, "tokens", 200, every=60, clock=lambda: next(seconds), stream=stream)
    for _ in range(4):
        advance(100)
    assert stream.getvalue().splitlines() == [
        "keys       40%  400 of 1,000 tokens, 3 tokens/s, 3 min left",
        "keys       60%  600 of 1,000 tokens, 3 tokens/s, 2 min left",
    ]


def test_a_stage_that_ends_within_the_minute_leaves_a_log_empty(capsys):
    with TerminalReporter().bar("keys", 10, "tokens") as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_a_log_has_no_control_characters(capsys):
    with TerminalReporter(line_seconds=0).bar("keys", 10, "tokens") as advance:
        advance(5)
        advance(5)
    lines = capsys.readouterr().err
    assert lines.count("\n") == 2
    assert not {"\r", "\x1b"} & set(lines)


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with TerminalReporter().bar("keys", 1000, "tokens", 500) as advance:
        advance(250)
    shown = sys.stderr.getvalue()
    assert "50 %|" in shown
    assert "tokens/s" in shown
    assert shown.endswith("\r")  # the bar is gone, the cursor where it was


def test_a_notebook_gets_a_bar_though_its_stderr_is_no_terminal(monkeypatch):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert in_notebook()
    with TerminalReporter().bar("keys", 10, "tokens") as advance:
        advance(5)
    assert "0 %|" in sys.stderr.getvalue()


def test_plain_python_is_no_notebook():
    assert not in_notebook()


def test_the_library_says_nothing_unless_asked(capsys):
    with Reporter().bar("keys", 10, "tokens") as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (59.4, "59 s"), (90, "2 min"), (3600, "1 h 0 min"), (7290, "2 h 2 min")]
)
def test_a_time_to_wait_is_told_as_people_do(seconds, told):
    assert duration(seconds) == told
