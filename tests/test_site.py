"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and knows every command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
_LOADED = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\"\s>]+)|<link[^>]*\shref=\"?(https?:[^\"\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs the extra [docs]: pip install 'knnstore[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_every_page_is_in_the_site_and_in_its_navigation(site):
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    built = {path.parent.name for path in site.rglob("index.html")} | {"index"}
    assert pages <= built
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in sorted(pages) if f" {page}.md" not in navigation] == []


def test_no_page_loads_anything_from_another_machine(site):
    loaded = {
        next(filter(None, match.groups()))
        for page in site.rglob("*.html")
        for match in _LOADED.finditer(page.read_text(encoding="utf-8"))
    }
    assert loaded == set()


def test_the_reference_of_the_commands_is_what_they_say(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import cli_reference

    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.reference(), (
        "docs/cli.md is behind the command line: run 'python tools/cli_reference.py'"
    )
