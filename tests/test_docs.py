"""Every command and every line of Python that the documentation shows is run; every link in it leads somewhere."""

import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from knnstore.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").glob("**/*.md"))]
EXAMPLES = sorted((REPOSITORY / "docs" / "examples").glob("*.py"))
RUN_PAGES = [page for page in PAGES if page.name == "README.md" or page.parent != REPOSITORY]
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*\S) -->\n)?"
    r"(?P<fence>```+)(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_SHELL = re.compile(r"[|&;<>()$`*?\[#~=!{\n]")  # what a shell would make more of than words
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)(?P<target>[^)#\s]+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the line it begins at, its language and text, and why it isn't run, if it isn't."""

    line: int
    language: str
    text: str
    reason: str | None


def blocks_of(page: str) -> list[Block]:
    return [
        Block(page.count("\n", 0, match.start("fence")) + 1, match["language"], match["text"], match["reason"])
        for match in _BLOCK.finditer(page)
    ]


def commands_of(console: str) -> str:
    """The script in a console block: what follows ``$ ``, and the lines that a backslash goes on to."""
    script, goes_on = [], False
    for line in console.splitlines():
        if goes_on or line.startswith("$ "):
            script.append(line if goes_on else line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    return "\n".join(script)


def links_of(page: str) -> list[str]:
    return [unquote(match["target"]) for match in _LINK.finditer(_BLOCK.sub("", page))]


def shown(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{page.relative_to(REPOSITORY)}:{block.line}", marks=_skip(block))
        for page in RUN_PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.language == language
    ]


def _skip(block: Block) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skip(reason=block.reason)] if block.reason else []


def run(command: list[str], folder: Path) -> None:
    """Run a command in the folder, with this environment's ``knnstore`` and ``python``, and fail if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def type_in(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script as a shell would; one of ``knnstore`` commands alone in this process, which has imported torch."""
    monkeypatch.chdir(folder)
    lines = script.replace("\\\n", " ").splitlines()
    if any(_SHELL.search(line) or shlex.split(line)[:1] != ["knnstore"] for line in lines):
        run(["bash", "-euo", "pipefail", "-c", script], folder)
        return
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: exit code {done.exit_code}\n{done.output[-2000:]}"


@pytest.fixture(scope="module")
def prepared(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``books/`` and an indexed store of it, made once by the commands themselves."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(tiny_corpus, folder / "books")
    with pytest.MonkeyPatch.context() as patch:
        type_in("knnstore ingest --corpus books/\nknnstore index --store books", folder, patch)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of ``prepared`` for one block to work in."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))


@pytest.mark.parametrize("block", shown("console"))
def test_the_commands_shown_run_as_typed(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = commands_of(block.text)
    assert script, "a console block shows no line that begins with '$ '"
    type_in(script, folder, monkeypatch)


@pytest.mark.parametrize("block", shown("python"))
@pytest.mark.filterwarnings("error::SyntaxWarning")
def test_the_python_shown_runs(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    script = folder / "shown.py"
    script.write_text(block.text, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_the_example_scripts_run(
    script: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # in this process, which has imported what they import
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = links_of(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_block_is_closed_and_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {
        "python",
        "console",
        "text",
        "json",
        "toml",
        "yaml",
        "c",
    }  # no bash: what is to be typed is a console block
    assert [block for block in blocks_of(text) if block.language not in known] == []
    assert "```" not in _BLOCK.sub("", text)
    asked = re.findall(r"^<!-- not run:", text, re.MULTILINE)
    assert len(asked) == sum(block.reason is not None for block in blocks_of(text))


PAGE = """# Title
See [the design](docs/design.md#why), [a site](https://example.org) and [below](#title).

<!-- not run: needs a cluster -->
```python
1 / 0
```

```console
$ echo one \\
  two
one two
$ false
```
"""


def test_blocks_are_found_with_their_language_line_and_reason_not_to_run() -> None:
    first, second = blocks_of(PAGE)
    assert (first.language, first.line, first.text, first.reason) == ("python", 5, "1 / 0\n", "needs a cluster")
    assert (second.language, second.line, second.reason) == ("console", 9, None)
    assert links_of(PAGE) == ["docs/design.md"]


def test_a_console_block_gives_its_commands_without_their_output(tmp_path: Path) -> None:
    script = commands_of(blocks_of(PAGE)[1].text)
    assert script == "echo one \\\n  two\nfalse"
    with pytest.raises(AssertionError, match=r"exit code 1\s+one two"):
        run(["bash", "-euo", "pipefail", "-c", script], tmp_path)


@pytest.mark.parametrize(
    "command", ["no-such-command", "false | cat", "false; true", "knnstore --help\nknnstore info --store none"]
)
def test_a_command_that_fails_anywhere_in_a_block_fails_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="exit code"):
        type_in(command, tmp_path, monkeypatch)


def _named_in_architecture() -> list[str]:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = text[text.index("## From a text file") :]
    return sorted(set(re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", walks)))


@pytest.mark.parametrize("name", _named_in_architecture())
def test_what_the_architecture_names_exists(name):
    words = ["knnstore", *name.split(".")]
    paths = {n: REPOSITORY / "/".join(words[:n]) for n in range(len(words), 1, -1)}
    depth = next(n for n, path in paths.items() if path.with_suffix(".py").is_file())
    thing = importlib.import_module(".".join(words[:depth]))
    for word in words[depth:]:
        thing = getattr(thing, word)
    assert thing is not None
