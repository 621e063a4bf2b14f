"""English text that is on every machine: Python's own documentation, for ``knnstore demo``.

::

    topics/with.txt            the language reference's topics (what ``help("with")`` prints)
    stdlib/argparse.txt        the docstrings of one module of the standard library
    packages/numpy/linalg.txt  the docstrings of one module of an installed package

Modules are parsed, never imported: the text costs no import, runs no code of others, and so is the same every time.
"""

import ast
import importlib.metadata
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from knnstore.atomic import storage_errors
from knnstore.errors import CorpusError
from knnstore.sizes import format_size

# What knnstore itself brings, so the corpus doesn't depend on what else is installed beside it.
PACKAGES = (
    *("numpy", "torch", "transformers", "dask", "distributed", "zarr", "numcodecs", "pyarrow", "faiss-cpu", "click"),
    *("tqdm", "tokenizers", "huggingface_hub", "fsspec", "sympy", "networkx"),
)
# Tests and vendored copies document nothing; lib2to3, idlelib and encodings are tables, fixtures and boilerplate.
_SKIPPED = {
    *("test", "tests", "idle_test", "conftest.py", "idlelib", "lib2to3", "encodings"),
    *("_vendor", "site-packages", "dist-packages"),
}
_MIN_LENGTH = 80  # characters: shorter docstrings repeat a name, shorter paragraphs are headings that may recur
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Document = tuple[str, str]  # name, such as "stdlib/argparse.txt", and text


@dataclass(frozen=True)
class Section:
    """One source of text: how many documents it gave, of how many bytes together."""

    documents: int
    bytes: int


@dataclass(frozen=True)
class CorpusFacts:
    """What ``write_corpus`` wrote, by source."""

    topics: Section
    stdlib: Section
    packages: Section

    @property
    def documents(self) -> int:
        """Documents altogether."""
        return self.topics.documents + self.stdlib.documents + self.packages.documents

    @property
    def bytes(self) -> int:
        """Bytes of UTF-8 altogether."""
        return self.topics.bytes + self.stdlib.bytes + self.packages.bytes


def write_corpus(folder: Path, target_bytes: int = 4_000_000) -> CorpusFacts:
    """Write Python's documentation as text files below ``folder``, stopping at the document that reaches the target.

    Topics come first, then the standard library, then the packages in turn, a module each; the result depends on
    the environment and ``target_bytes`` (of UTF-8) alone, and writing it again changes nothing.

    Raises CorpusError if the folder holds text of something else, ResourceError if it can't be written.
    """
    documents = _until(target_bytes, python_documents())
    strangers = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")} - documents.keys()
    if strangers:
        raise CorpusError(
            f"{folder / min(strangers)} is not part of the demo's corpus of {format_size(target_bytes)}: "
            f"give an empty folder, or remove {folder}"
        )
    for name, data in documents.items():
        path = folder / name
        with storage_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return CorpusFacts(*(_section(documents, source) for source in ("topics/", "stdlib/", "packages/")))


def python_documents() -> Iterator[_Document]:
    """Every document there is, as (name, text), in order.

    No paragraph comes twice (topics quote one another, packages repeat their parameters), for a copy would let the
    store answer from what was held out.
    """
    seen: set[str] = set()
    for name, docstrings in _sources():
        fresh = [_without_seen(text, seen) for text in docstrings]
        kept = [text for text in fresh if len(text) >= _MIN_LENGTH]
        if kept:
            yield name, "\n\n".join(kept) + "\n"


def _without_seen(text: str, seen: set[str]) -> str:
    """The text without the paragraphs in ``seen``, to which those that are left are added."""
    kept = []
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())  # copies are indented and wrapped in other ways
        if words not in seen:
            kept.append(paragraph)
        if len(words) >= _MIN_LENGTH:
            seen.add(words)
    return "\n\n".join(kept).strip()


def _until(target_bytes: int, documents: Iterable[_Document]) -> dict[str, bytes]:
    taken: dict[str, bytes] = {}
    total = 0
    for name, text in documents:
        if total >= target_bytes:
            break
        taken[name] = text.encode("utf-8", "replace")  # a docstring may spell out a lone surrogate
        total += len(taken[name])
    return taken


def _section(documents: dict[str, bytes], source: str) -> Section:
    sizes = [len(data) for name, data in documents.items() if name.startswith(source)]
    return Section(len(sizes), sum(sizes))


def _sources() -> Iterator[tuple[str, list[str]]]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    for topic, text in sorted(_topics(stdlib / "pydoc_data" / "topics.py").items()):
        yield f"topics/{topic}.txt", [inspect.cleandoc(text)]
    for path in _in_reading_order(path.relative_to(stdlib) for path in stdlib.rglob("*.py")):
        yield f"stdlib/{_dotted(path)}.txt", module_docstrings(stdlib / path)
    # One module of each package in turn, so that the largest package doesn't fill the corpus alone.
    for turn in zip_longest(*map(_package_modules, PACKAGES)):
        for module in filter(None, turn):
            name, path = module
            yield f"packages/{name}.txt", module_docstrings(path)


def _topics(path: Path) -> dict[str, str]:
    """The dict of topic to text that the file assigns to ``topics``."""
    tree = ast.parse(path.read_bytes())
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def _package_modules(distribution: str) -> list[tuple[str, Path]]:
    """("numpy/linalg", path of its source) for each module; none if the distribution isn't installed."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    sources = {Path(file): file for file in files if file.suffix == ".py"}
    return [(_package_name(path), Path(str(sources[path].locate()))) for path in _in_reading_order(sources)]


def _package_name(path: Path) -> str:
    """``numpy/linalg/__init__.py`` as ``numpy/linalg``; the package itself, or a lone module, as ``numpy/numpy``."""
    package, _, inner = _dotted(path).partition(".")
    return f"{package}/{inner or package}"


def _in_reading_order(paths: Iterable[Path]) -> list[Path]:
    """Without the skipped folders; what a user imports, nearest to the top, comes before what lies deep."""
    kept = (path for path in paths if not _SKIPPED.intersection(path.parts))
    return sorted(kept, key=lambda path: (len(path.parts) - (path.name == "__init__.py"), path.as_posix()))


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_docstrings(path: Path) -> list[str]:
    """The docstrings of a Python source file in their order: module, public classes, functions and methods.

    A file that isn't there, or doesn't parse, has none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in the sources of others
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return []
    return [text for node in _documented(tree) if (text := ast.get_docstring(node))]


def _documented(node: ast.AST) -> Iterator[ast.Module | _Definition]:
    if isinstance(node, ast.Module | _Definition):
        yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return  # what a function defines inside is its own affair
    for child in ast.iter_child_nodes(node):
        public = isinstance(child, _Definition) and not child.name.startswith("_")
        if public or isinstance(child, ast.If | ast.Try):
            yield from _documented(child)
