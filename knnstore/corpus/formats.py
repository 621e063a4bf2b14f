"""What a file holds, by the end of its name."""

import os
from collections.abc import Mapping
from typing import Literal

Kind = Literal["text", "html", "jsonl", "json", "parquet", "tsv", "aligned"]
Formats = Mapping[str, Kind]

_RECORDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
TEXT_FORMATS: Formats = {".txt": "text", ".md": "text", **_RECORDS}
PAIR_FORMATS: Formats = {".tsv": "tsv", **_RECORDS}
ON_REQUEST: Formats = {".html": "html", ".htm": "html", ".xhtml": "html"}
"""Formats of files that are read only where the user chooses them; any other file that is chosen is plain text."""

RECORD_KINDS: tuple[Kind, ...] = ("jsonl", "json", "parquet")
PACKINGS = (".gz", ".zst", ".bz2", ".xz")
"""Compression formats, which any format but Parquet may be packed in."""

_LONGEST_TYPE = 16


def packing_of(path: str) -> str:
    """The suffix of the compression format, or ``""``."""
    return next((suffix for suffix in PACKINGS if path.lower().endswith(suffix)), "")


def kind_of(path: str, formats: Formats) -> Kind | None:
    """What a file of that name holds; None if no format has its suffix."""
    packing = packing_of(path)
    name = path.lower().removesuffix(packing)
    kind = next((kind for suffix, kind in formats.items() if name.endswith(suffix)), None)
    return None if packing and kind == "parquet" else kind


def type_of(path: bytes) -> str:
    """The type of a file as the summary lists it: ``.md``, ``.json.gz``, or ``""`` without a usual suffix."""
    name = os.fsdecode(path.rpartition(b"/")[2]).lower()
    packing = packing_of(name)
    suffix = os.path.splitext(name.removesuffix(packing))[1] + packing  # noqa: PTH122 - a name, not a path
    usual = suffix.isprintable() and " " not in suffix and len(suffix) <= _LONGEST_TYPE
    return suffix if usual else ""


def listed(formats: Formats) -> str:
    """The suffixes, for people."""
    return f"{' '.join(formats)} (also {' '.join(PACKINGS)})"
