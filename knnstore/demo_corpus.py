"""English text that exists on every machine, for ``knnstore demo``: Python's own documentation.

::

    topics/with.txt            the language reference's topics (what ``help("with")`` prints)
    stdlib/argparse.txt        the docstrings of one module of the standard library
    packages/numpy/linalg.txt  the docstrings of one module of an installed package

Modules are parsed, never imported: this is fast, runs no foreign code, and always gives the same text.
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

from knnstore.errors import CorpusError
from knnstore.files import storage_errors
from knnstore.sizes import format_size

# Dependencies of knnstore, so that the corpus doesn't depend on other installed packages.
PACKAGES = (
    *("numpy", "torch", "transformers", "dask", "distributed", "zarr", "numcodecs", "pyarrow", "faiss-cpu", "click"),
    *("tqdm", "tokenizers", "huggingface_hub", "fsspec", "sympy", "networkx"),
)
# Tests and vendored copies aren't documentation; lib2to3, idlelib and encodings are tables, fixtures and boilerplate.
_SKIPPED = {
    *("test", "tests", "idle_test", "conftest.py", "idlelib", "lib2to3", "encodings"),
    *("_vendor", "site-packages", "dist-packages"),
}
_MIN_LENGTH = 80  # characters: shorter docstrings repeat a name, shorter paragraphs are recurring headings
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Document = tuple[str, str]  # name, such as "stdlib/argparse.txt", and text


@dataclass(frozen=True)
class Section:
    """Number and total bytes of the documents from one source."""

    documents: int
    bytes: int


@dataclass(frozen=True)
class CorpusFacts:
    """The documents written by ``write_corpus``, by source."""

    topics: Section
    stdlib: Section
    packages: Section

    @property
    def documents(self) -> int:
        """Return the number of documents."""
        return self.topics.documents + self.stdlib.documents + self.packages.documents

    @property
    def bytes(self) -> int:
        """Return the total bytes in UTF-8."""
        return self.topics.bytes + self.stdlib.bytes + self.packages.bytes


def write_corpus(folder: Path, target_bytes: int = 4_000_000) -> CorpusFacts:
    """Write Python's documentation as text files below ``folder``, stopping at the document that reaches the target.

    Topics come first, then the standard library, then one module of each package in turn. The result depends only on
    the environment and ``target_bytes`` (in UTF-8), and writing it again changes nothing.

    Raises CorpusError if the folder holds other text files, ResourceError if it can't be written.
    """
    documents = _until(target_bytes, python_documents())
    strangers = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")} - documents.keys()
    if strangers:
        raise CorpusError(
            f"{folder / min(strangers)} is not part of the demo's corpus of {format_size(target_bytes)}: "
            f"give an empty folder or remove {folder}"
        )
    for name, data in documents.items():
        path = folder / name
        with storage_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return CorpusFacts(*(_section(documents, source) for source in ("topics/", "stdlib/", "packages/")))


def python_documents() -> Iterator[_Document]:
    """Yield all documents, as (name, text), in order.

    No paragraph occurs twice, although topics quote each other and packages repeat their parameters: otherwise the
    store could contain held-out text.
    """
    seen: set[str] = set()
    for name, docstrings in _sources():
        fresh = [_without_seen(text, seen) for text in docstrings]
        kept = [text for text in fresh if len(text) >= _MIN_LENGTH]
        if kept:
            yield name, "\n\n".join(kept) + "\n"


def _without_seen(text: str, seen: set[str]) -> str:
    """Return the text without the paragraphs in ``seen``, and add the others to ``seen``."""
    kept = []
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())  # copies may be indented and wrapped differently
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
        taken[name] = text.encode("utf-8", "replace")  # a docstring may contain a lone surrogate
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
    # One module of each package in turn, so that the largest package doesn't fill the corpus.
    for turn in zip_longest(*map(_package_modules, PACKAGES)):
        for module in filter(None, turn):
            name, path = module
            yield f"packages/{name}.txt", module_docstrings(path)


def _topics(path: Path) -> dict[str, str]:
    """Return the dict of topics and texts that the file assigns to ``topics``."""
    tree = ast.parse(path.read_bytes())
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def _package_modules(distribution: str) -> list[tuple[str, Path]]:
    """Return ("numpy/linalg", path of its source) for each module; empty if the distribution isn't installed."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    sources = {Path(file): file for file in files if file.suffix == ".py"}
    return [(_package_name(path), Path(str(sources[path].locate()))) for path in _in_reading_order(sources)]


def _package_name(path: Path) -> str:
    """Return ``numpy/linalg`` for ``numpy/linalg/__init__.py``, and ``numpy/numpy`` for a package or single module."""
    package, _, inner = _dotted(path).partition(".")
    return f"{package}/{inner or package}"


def _in_reading_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by depth, because users import modules near the top, and drop skipped folders."""
    kept = (path for path in paths if not _SKIPPED.intersection(path.parts))
    return sorted(kept, key=lambda path: (len(path.parts) - (path.name == "__init__.py"), path.as_posix()))


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_docstrings(path: Path) -> list[str]:
    """Return the docstrings of a Python source file in order: module, public classes, functions and methods.

    Empty for a file that doesn't exist or can't be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in foreign sources
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return []
    return [text for node in _documented(tree) if (text := ast.get_docstring(node))]


def _documented(node: ast.AST) -> Iterator[ast.Module | _Definition]:
    if isinstance(node, ast.Module | _Definition):
        yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return  # definitions inside a function are private
    for child in ast.iter_child_nodes(node):
        public = isinstance(child, _Definition) and not child.name.startswith("_")
        if public or isinstance(child, ast.If | ast.Try):
            yield from _documented(child)
