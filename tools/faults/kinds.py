"""Tiny stores with every kind of index, made in every possible way."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from faults.material import INDEX, INGEST, STORE, copy_of, grow_corpus, make_corpus, make_model, run

_NOTHING: Callable[[Path], None] = lambda folder: None  # noqa: E731
_COMPACT = ("compact", "--store", "books")
_DROP = ("index", "--store", "books", "--drop-keys")


@dataclass(frozen=True, slots=True)
class Kind:
    """How to make a store: the kind it starts from, the commands, the change of the corpus before, and its name."""

    before: str
    commands: tuple[tuple[str, ...], ...]
    change: Callable[[Path], None] = _NOTHING
    store: str = STORE


def _add(folder: Path) -> None:
    """Add only new documents, so that none is replaced."""
    linked = (folder / "books").resolve()
    (folder / "books").unlink()
    make_corpus(folder / "more", documents=2, words=150, seed=1)
    (folder / "books").mkdir()
    for path in linked.iterdir():
        (folder / "books" / path.name).write_bytes(path.read_bytes())
    for number in range(2):
        (folder / "more" / f"{number}.txt").replace(folder / "books" / f"{8 + number}.txt")
    (folder / "more").rmdir()


KINDS: dict[str, Kind] = {
    "built": Kind("", (INGEST, INDEX)),
    "appended": Kind("built", (INGEST, INDEX), grow_corpus),
    "removed": Kind("appended", (("remove", "--store", "books", "--document", "books/2.txt"), (*INDEX, "--overwrite"))),
    "carried": Kind("built", (INGEST, INDEX, ("compact", "--store", "books")), _add),
    "recentred": Kind("appended", (_COMPACT,)),
    "subset": Kind("built", (("subset", "books", "--sample", "60%", "--into", "half"),), store="half.knnstore"),
    "merged": Kind("subset", (("merge", "half", "books", "--into", "both"),), store="both.knnstore"),
    "dropped": Kind("appended", (_DROP,)),
    "recentred and dropped": Kind("recentred", (_DROP,)),
    "dropped and compacted": Kind("dropped", (_COMPACT,)),
    "OPQ": Kind("built", ((*INDEX, "--rotation", "OPQ"),)),
    "PCA": Kind("built", ((*INDEX, "--rotation", "PCA8"),)),
    "rotated and recentred": Kind(
        "OPQ", (("remove", "--store", "books", "--document", "books/3.txt"), ("compact", "--store", "books"))
    ),
    "float16": Kind("", ((*INGEST, "--key-dtype", "float16"), INDEX)),
}
"""Each after the kind that it starts from. ``--overwrite`` replaces an index of the same plan."""


def make_kinds(folder: Path, names: Iterable[str] = KINDS) -> dict[str, Path]:
    """Make stores of these kinds below ``folder``, each beside its ``lm/`` and ``books/``; return them by kind."""
    begin = folder / "begin"
    begin.mkdir(parents=True)
    make_model(begin / "lm")
    make_corpus(begin / "books")
    places: dict[str, Path] = {"": begin}
    wanted = set(names)
    while more := {KINDS[name].before for name in wanted} - wanted - {""}:
        wanted |= more
    for name, kind in KINDS.items():
        if name not in wanted:
            continue
        place = places[name] = copy_of(places[kind.before], folder / name.replace(" ", "-"))
        kind.change(place)
        for command in kind.commands:
            code, output = run(place, *command)
            if code:
                raise RuntimeError(f"{name}: {output}")
    return {name: places[name] / KINDS[name].store for name in names}
