"""Who may import whom: the house's floors, kept by reading every import in the package."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "knnstore"

# Bottom to top. A room may import from lower floors and from itself, never from its own floor's other rooms.
PURE = {"windows", "neighbours", "perplexity", "planning", "holdout", "overlap"}
MIXTURE = Path("knnstore/mixing/mixture.py")  # the only module of mixing that needs torch: it works on logits
FLOORS: list[set[str]] = [
    {"wording"},
    {"arrays", "errors"},
    {"terminal"},
    {"sizes", "progress", "urls"},
    {"outputs"},
    {"files"},
    {"diskspace", "outofmemory"},
    {"records"},
    PURE,
    {"mixing"},  # pure as well, over neighbours
    {"datastore"},
    {"scheduling"},
    {"corpus", "lm"},
    {"indexes", "suffix_array", "passages", "recognition"},
    {"ingestion", "indexing", "scoring", "verification"},
    {"attachment", "recovery", "living", "description", "exchange"},
    {"attribution"},
    {"generation"},
    {"operations"},
    {"api"},
    {"evaluation"},
    {"demo_corpus"},
    {"demo", "explore"},
    {"cli"},
    {"__main__"},
]
# What a room may see of a lower one, where that is less than everything.
NARROWED = {
    ("corpus", "datastore"): set[str](),
    ("lm", "datastore"): {"knnstore.datastore.manifest"},
    ("lm", "mixing"): set[str](),
    ("suffix_array", "mixing"): {"knnstore.mixing.matches"},
}
# Packages within a room: what they may see of the product besides themselves, and which modules they show to others.
WITHIN = {
    "knnstore.indexes.compute": (
        {
            "knnstore.arrays",
            "knnstore.datastore.block_sums",
            "knnstore.datastore.mapped",
            "knnstore.files.local",
            "knnstore.neighbours",
        },
        {"choice", "coarse", "grouping", "protocols", "rotation", "stored"},
    ),
}
# Packages that implement a protocol, and who alone may see that.
BEHIND = {"knnstore.indexes.ivfpq": Path("knnstore/indexes/registry.py")}
# The only rooms that may import a library; one that isn't named here is free.
LIBRARIES = {
    "zarr": {"datastore"},
    "faiss": {"indexes"},
    "obstore": {"files"},
    "boto3": {"files"},
    "torch": {"mixing", "lm", "indexes", "ingestion", "scoring", "attachment", "evaluation"},
    "transformers": {"lm"},
    "dask": {"scheduling"},
    "distributed": {"scheduling"},
    "click": {"cli"},
    "gradio": {"explore"},
    "fastapi": {"explore"},
    "starlette": {"explore"},
    "uvicorn": {"explore"},
    "lm_eval": {"cli", "evaluation"},
    "pathspec": {"corpus"},
    "resiliparse": {"corpus"},
}
HEAVY = ("numpy", "torch", "transformers", "faiss", "zarr", "dask", "distributed", "pyarrow")
MODULES = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))


def imports_of(source: str, module: Path) -> Iterator[str]:
    """Dotted names of what a module imports anywhere, functions included: ``knnstore.lm.loading`` or ``torch``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.parts[: -node.level] if node.level else ()
            origin = ".".join([*parents, *filter(None, [node.module])])
            # `from knnstore import lm` imports a room, `from knnstore.lm import load` a name out of one
            yield from (f"{origin}.{alias.name}" if origin == "knnstore" else origin for alias in node.names)


def room_of(module: Path) -> str:
    return module.with_suffix("").parts[1]


def floor_of(room: str) -> int:
    floors = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"knnstore/{room} has no floor yet: place it in FLOORS of {Path(__file__).name}"
    return floors[0]


def breaches(source: str, module: Path) -> list[str]:
    """Every import of ``source`` that the house forbids, as sentences."""
    if module.name == "__init__.py" and len(module.parts) == 2:
        # `__getattr__` imports the interface for programs when it is first used; a test below holds it to that
        names = set(imports_of(source, module)) - {"typing", "knnstore.api"}
        return [f"knnstore/__init__.py imports {name}, so that everything would" for name in sorted(names)]
    room, found = room_of(module), []
    for name in sorted(set(imports_of(source, module))):
        found += [f"{module} imports {name}, which {why}" for why in breaches_within(name, module)]
        top, _, rest = name.partition(".")
        if top != "knnstore":
            if room not in LIBRARIES.get(top, {room}):
                found.append(f"{module} imports {name}, which belongs to {sorted(LIBRARIES[top])} alone")
            continue
        other = rest.partition(".")[0]
        if other in ("", room, "__version__"):
            continue
        if floor_of(other) >= floor_of(room):
            found.append(f"{module} imports {name}, which is not below it")
        elif (room, other) in NARROWED and name not in NARROWED[room, other]:
            found.append(
                f"{module} imports {name}; {room} may see only {NARROWED[room, other] or 'nothing'} of {other}"
            )
    return found


def breaches_within(name: str, module: Path) -> Iterator[str]:
    for package, (seen, shown) in WITHIN.items():
        inside, its_own = ".".join(module.parts).startswith(f"{package}."), name.startswith(f"{package}.")
        if inside and name.startswith("knnstore") and not its_own and name not in seen:
            yield f"{package} may not see"
        if its_own and not inside and name.removeprefix(f"{package}.") not in shown:
            yield f"is {package}'s own"
    for package, door in BEHIND.items():
        inside = ".".join(module.parts).startswith(f"{package}.")
        if f"{name}.".startswith(f"{package}.") and not inside and module != door:
            yield f"is behind {door}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_and_each_library_stays_in_its_room(module: Path) -> None:
    assert breaches((PACKAGE.parent / module).read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in {*PURE, "mixing"} and m != MIXTURE], ids=str)
def test_pure_maths_needs_numpy_alone(module: Path) -> None:
    tops = {
        name.partition(".")[0] for name in imports_of((PACKAGE.parent / module).read_text(encoding="utf-8"), module)
    }
    assert tops - sys.stdlib_module_names <= {"numpy", "knnstore"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("knnstore/sizes.py", "import zarr.codecs"),
        ("knnstore/datastore/store.py", "def f():\n    from dask import delayed"),
        ("knnstore/errors.py", "from knnstore.sizes import parse_size"),
        ("knnstore/windows.py", "from knnstore.neighbours import Neighbours"),
        ("knnstore/demo.py", "from knnstore import cli"),
        ("knnstore/ingestion.py", "from .cli import main"),
        ("knnstore/corpus/rows.py", "from ..datastore import store"),
        ("knnstore/lm/loading.py", "from knnstore.datastore.store import Datastore"),
        ("knnstore/__init__.py", "import json"),
        ("knnstore/indexes/ivfpq/join.py", "from knnstore.indexes.compute.kernel import load_kernel"),
        ("knnstore/scoring/search.py", "from knnstore.indexes.ivfpq.search import Searcher"),
        ("knnstore/indexes/exact.py", "from knnstore.indexes.ivfpq import batch"),
        ("knnstore/indexes/compute/native.py", "from knnstore.indexes.plan import IndexFolder"),
    ],
)
def test_a_breach_is_noticed(module: str, source: str) -> None:
    assert len(breaches(source, Path(module))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("knnstore/lm/loading.py", "import torch\nfrom knnstore.datastore.manifest import ModelIdentity"),
        ("knnstore/lm/loading.py", "from . import spec\nfrom .spec import LmSpec"),
        ("knnstore/cli/commands.py", "from knnstore import __version__\nimport click"),
        ("knnstore/__main__.py", "from knnstore.cli import main"),
        ("knnstore/indexes/ivfpq/search.py", "from knnstore.datastore.store import Datastore\nimport faiss"),
    ],
)
def test_what_the_house_allows_passes(module: str, source: str) -> None:
    assert breaches(source, Path(module)) == []


def test_no_module_is_named_for_nothing() -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
    assert [module for module in MODULES if vague.intersection(module.with_suffix("").parts)] == []


@pytest.mark.parametrize("what", ["knnstore", "knnstore.cli"])
def test_the_command_answers_before_the_heavy_libraries_load(what: str) -> None:
    code = f"import sys, {what}; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def loaded_with(module: Path) -> set[str]:
    """Modules of the package that are imported when this one is: not inside functions, nor for type checkers alone."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in MODULES}

    def imports(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield full if (full := f"{node.module}.{alias.name}") in names else str(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in ast.iter_child_nodes(node):
                yield from imports(child)

    return names.intersection(imports(ast.parse((PACKAGE.parent / module).read_text(encoding="utf-8"))))


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest way through a graph. Raises AssertionError with the way if it comes back to where it was."""
    longest: dict[str, list[str]] = {}

    def follow(name: str, way: tuple[str, ...]) -> list[str]:
        assert name not in way, f"a cycle: {' -> '.join((*way, name))}"
        if name not in longest:
            ways = [follow(other, (*way, name)) for other in sorted(graph[name])]
            longest[name] = [name, *max(ways, key=len, default=[])]
        return longest[name]

    return max((follow(name, ()) for name in graph), key=len)


def test_a_chain_of_imports_is_short_and_never_a_circle() -> None:
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    chain = longest_chain({name: loaded_with(path) - {name} for name, path in names.items()})
    assert len(chain) <= 20, " -> ".join(chain)
    with pytest.raises(AssertionError, match="a cycle: a -> b -> a"):
        longest_chain({"a": {"b"}, "b": {"a"}})


def test_no_two_classes_share_a_name() -> None:
    names = [
        node.name
        for module in MODULES
        for node in ast.walk(ast.parse((PACKAGE.parent / module).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, number in Counter(names).items() if number > 1] == []
