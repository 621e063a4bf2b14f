"""Folders, files and glob patterns -> the files of a corpus."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from knnstore.corpus.formats import ON_REQUEST, PAIR_FORMATS, TEXT_FORMATS, Formats, Kind, kind_of, listed
from knnstore.corpus.html import extractor_version
from knnstore.corpus.listing import CARD, FileType, Listing, Met, Reason, Source
from knnstore.corpus.opening import naming_errors
from knnstore.corpus.selection import Selection
from knnstore.corpus.values import has_records
from knnstore.corpus.walking import Argument, Bounds, Step, exists, identity_of
from knnstore.errors import CorpusError, UsageError
from knnstore.sizes import format_size
from knnstore.urls import file_path, split_url
from knnstore.wording import option

_SHOWN_TYPES = 8


def find_sources(
    corpus: Sequence[str],
    selection: Selection = Selection(),  # noqa: B008 - frozen
    fields: Sequence[str] = ("text",),
    formats: Formats = TEXT_FORMATS,
) -> Listing:
    """Return the files of the arguments: files, folders (with everything below) or glob patterns (with ``**``).

    They are in the order of ``Listing``. A file is read whatever its type if an argument names it, a pattern ends in
    its suffix, or ``selection`` includes it. Of the other files, those of ``formats`` are read: ``.json`` only if its
    records have the ``fields``, and ``README.md`` only without data files in or below its folder. Hidden entries and
    ``*.knnstore`` folders are skipped; all other files that aren't read are counted.

    Raises CorpusError if an argument matches nothing or isn't a regular file, if most bytes of an argument can't be
    read, or if there is no text at all; ResourceError if a file or folder isn't accessible; UsageError for HTML without
    the extra.
    """
    rules = _Rules(formats, selection, tuple(fields))
    arguments = [Argument(local_path(argument)) for argument in corpus]
    bounds = Bounds(argument.folder for argument in arguments if not argument.is_file)
    met = (_meet(number, argument, rules, bounds) for number, argument in enumerate(arguments))
    matches = _listed(met)
    if not matches:
        given = ", ".join(repr(argument.text) for argument in arguments) or "no path"
        raise CorpusError(
            f"no text found in {given}: looked for {listed(formats)} and left out "
            f"{describe(matches.left_out) or 'nothing'}{_advice(matches.left_out)}"
        )
    for number, taken, unread in matches.shares:
        if unread > taken:
            raise CorpusError(
                f"most of {arguments[number].text!r} can't be read: found {format_size(taken)} of text, left out "
                f"{format_size(unread)}, {describe(matches.left_out)}{_advice(matches.left_out)}"
            )
    if any(source.kind == "html" for source in matches):
        extractor_version()
    return matches


def find_pairs(
    corpus: Sequence[str],
    source: Sequence[str],
    target: Sequence[str],
    selection: Selection = Selection(),  # noqa: B008 - frozen
    fields: Sequence[str] = (),
) -> Listing:
    """Return the files of a corpus of pairs: ``corpus`` as in ``find_sources``, and the n-th ``source`` with the n-th
    ``target`` file.

    Raises CorpusError for files that don't exist or have no counterpart.
    """
    if len(source) != len(target):
        raise CorpusError(
            f"{len(source)} {option('source')} and {len(target)} {option('target')} files: give each source file its "
            "target file"
        )
    matches = find_sources(corpus, selection, fields, PAIR_FORMATS) if corpus else _listed([])
    sides = [[_aligned(local_path(path)) for path in paths] for paths in (source, target)]
    matches.add(
        replace(second, beside=first.path, beside_bytes=first.bytes) for first, second in zip(*sides, strict=True)
    )
    return matches


def local_path(argument: str) -> str:
    """Return the path of a ``file://`` URL; other text unchanged. Raises UsageError for other URLs."""
    parts = None if exists(argument) else split_url(argument)
    if parts is None:
        return argument
    if parts.scheme != "file":
        raise UsageError(f"{argument!r} is not on this machine: copy the text to a local disk first")
    return file_path(parts)


def scope(corpus: Sequence[str], selection: Selection, formats: Formats = TEXT_FORMATS) -> Callable[[str], bool]:
    """Return a function that tells whether ``find_sources`` would read a file at a path."""
    rules = _Rules(formats, selection, ())
    arguments = [Argument(local_path(argument)) for argument in corpus]
    bounds = Bounds(argument.folder for argument in arguments if not argument.is_file)

    def is_inside(path: str) -> bool:
        return any(
            argument.covers(path)
            and rules.judge(path, argument)[0] is not None
            and (argument.is_file or selection.follow_links or not bounds.leaves(path))
            for argument in arguments
        )

    return is_inside


def describe(types: Sequence[FileType]) -> str:
    """Return file types with their counts as text: ``3 .pdf, 1 .md (the card of the data)``."""
    shown = [f"{file_type.files:,} {file_type.label}" for file_type in types[:_SHOWN_TYPES]]
    rest = sum(file_type.files for file_type in types[_SHOWN_TYPES:])
    return ", ".join([*shown, *([f"{rest:,} of other types"] if rest else [])])


def fingerprint(sources: Iterable[Source]) -> str:
    """Return a SHA-256, in hex, of all paths, kinds and sizes in order; it is the same for an unchanged listing."""
    digest = hashlib.sha256()
    for source in sources:
        beside = [source.beside, source.beside_bytes] if source.beside else []
        extractor = [extractor_version()] if source.kind == "html" else []
        row = [source.path, source.kind, source.bytes, *beside, *extractor]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Rules:
    formats: Formats
    selection: Selection
    fields: tuple[str, ...]

    def judge(self, path: str, argument: Argument) -> tuple[Kind | None, Reason, bool]:
        """Return a file's kind, why it is left out, and whether the user selected it, from its name only."""
        inside = argument.inside(path)
        included = self.selection.includes(inside)
        if self.selection.excludes(inside) or (self.selection.include and not included and not argument.is_file):
            return None, "choice", False
        chosen = included or argument.is_file or argument.names_type(path)
        kind = kind_of(path, self.formats)
        if kind is None and chosen and self.formats is TEXT_FORMATS:
            kind = kind_of(path, ON_REQUEST) or "text"
        return kind, "" if kind else "type", chosen


def _advice(left_out: Sequence[FileType]) -> str:
    """Return what to do about the largest type of files that can't be read."""
    unread = [file_type for file_type in left_out if file_type.reason in ("type", "field", "link")]
    if not unread:
        return ""
    pattern = [f"*{unread[0].type}"]
    skip = f"skip them with {option('exclude', pattern)}"
    steps = {
        "type": f"read them as text with {option('include', pattern)}, or {skip}",
        "field": f"name the field with {option('text_field')}, or {skip}",
        "link": f"follow the links with {option('follow_links', True)}",
    }
    return f"; {steps[unread[0].reason]}"


def _listed(met: Iterable[Iterable[Met]]) -> Listing:
    return Listing(chain.from_iterable(met), folder=str(Path.cwd()))


def _meet(number: int, argument: Argument, rules: _Rules, bounds: Bounds) -> Iterator[Met]:
    """Yield every file found by an argument, in the order of the walk; some more than once."""
    for step in argument.steps(rules.selection, bounds):
        kind, reason, chosen = rules.judge(step.path, argument)
        source, identity = (None, b"") if kind is None or step.reason else _examine(step.path, kind)
        if source is None:
            if argument.is_file and reason != "choice":
                raise CorpusError(f"{step.path!r} isn't a readable text file: give {listed(rules.formats)}")
            reason = step.reason or reason or "type"
            yield Met(number, os.fsencode(step.path), None, _size(step), b"", reason, step.outside)
            continue
        path = step.path.encode()
        if not chosen:
            if kind == "json" and not has_records(source, rules.fields):
                yield Met(number, path, None, source.bytes, b"", "field", step.outside)
                continue
            if kind == "text" and path.lower().rpartition(b"/")[2] == CARD:
                reason = "card"  # left out if there are data files
        yield Met(number, path, kind, source.bytes, identity, reason, step.outside)


def _aligned(path: str) -> Source:
    if not exists(path) or Path(path).is_dir():
        files = f"{option('source')} and {option('target')} files"
        raise CorpusError(f"no such file: {path!r}; give {files} with one text per line")
    source, _ = _examine(path, "aligned")
    if source is None:
        raise CorpusError(f"{path!r} isn't a readable text file")
    return source


def _examine(path: str, kind: Kind) -> tuple[Source | None, bytes]:
    """Return the source at ``path``, None if it isn't a regular file, and the identity of the file."""
    with naming_errors(path):
        info = Path(path).stat()
    if not stat.S_ISREG(info.st_mode):  # opening a FIFO would block forever
        return None, b""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CorpusError(
            f"the file name {path!r} is not UTF-8 and can't be recorded: rename the file or skip it with "
            f"{option('exclude')}"
        ) from None
    return Source(path, kind, info.st_size), identity_of(info)


def _size(step: Step) -> int:
    """Return the bytes of a file that isn't read."""
    try:
        info = Path(step.path).stat()
    except OSError:
        return 0
    return info.st_size if stat.S_ISREG(info.st_mode) else 0
