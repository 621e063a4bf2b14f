"""What is published: a source archive with the whole package and no test, and a page whose links lead on."""

import email
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest

_RELATIVE = re.compile(r"\]\((?!https?://|mailto:)")
_BUILD = """
import sys
from setuptools import build_meta
build_meta.build_sdist(sys.argv[1])
"""


@pytest.fixture(scope="module")
def archive(repository, tmp_path_factory):
    """The source archive, built from what git would hand out: a copy of the files that are published."""
    pytest.importorskip("setuptools", minversion="77", reason="older ones don't know the licence's form")
    out = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("copy") / "knnstore"
    shutil.copytree(repository / "knnstore", copy / "knnstore", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy)
    (copy / "tests").mkdir()
    shutil.copy(repository / "tests" / "test_locking.py", copy / "tests")  # setuptools takes such a file by itself
    built = subprocess.run([sys.executable, "-c", _BUILD, out], cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(out.iterdir())) as archive:
        yield archive


def test_the_source_archive_has_the_package_and_no_part_of_the_suite(archive, repository):
    names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith("tests")]
    modules = (path.relative_to(repository).as_posix() for path in (repository / "knnstore").rglob("*.py"))
    assert set(modules) <= names
    assert {"knnstore/py.typed", "knnstore/indexes/compute/kernel.c", "setup.py", "README.md", "LICENSE"} <= names


def test_the_page_of_the_package_is_the_readme_without_links_into_the_repository(archive, repository):
    information = next(name for name in archive.getnames() if name.count("/") == 1 and name.endswith("PKG-INFO"))
    metadata = email.message_from_bytes(archive.extractfile(information).read())
    page = metadata.get_payload(decode=True).decode()
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert page.splitlines()[0] == readme.splitlines()[0]
    assert _RELATIVE.search(readme)
    assert not _RELATIVE.search(page)
    assert "![" not in page
    assert page.count("](https://") == readme.count("](https://")


def test_every_lower_bound_can_be_pinned(repository):
    tool = runpy.run_path(str(repository / "tools" / "lowest.py"))
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = tool["lowest"](project["dependencies"])
    assert {"click==8.2", "transformers==4.56"} <= set(pins)
    assert len(pins) == len(project["dependencies"]) - 1  # torch is chosen by whoever installs it
    with pytest.raises(ValueError, match="numpy<3"):
        tool["lowest"](["numpy<3"])


def test_no_module_asks_click_for_what_only_later_releases_have(repository):
    sources = (repository / "knnstore").rglob("*.py")
    assert not [path for path in sources if "click.ParamType[" in path.read_text(encoding="utf-8")]
