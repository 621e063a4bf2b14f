"""Making a segment's files again: from the index's copy, from the LM, from the corpus, from what is recorded."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from knnstore.corpus.options import ReadOptions
from knnstore.corpus.parts import plan_parts
from knnstore.corpus.selection import Selection
from knnstore.corpus.sources import find_sources, fingerprint
from knnstore.datastore.arrays import METADATA_FILE, create_array
from knnstore.datastore.commits import FileRecord, chunk_number, file_damage, load_commit
from knnstore.datastore.layout import LAYOUT_TASK
from knnstore.datastore.listed import gather_rows
from knnstore.datastore.segment import ARRAYS, DOCUMENTS_FILE, DOCUMENTS_TASK, SAMPLES_TASK, Segment, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter, TaskWriter
from knnstore.errors import CorpusError, CorruptStoreError, MismatchError
from knnstore.files import make_folder, write_atomically
from knnstore.holdout import choose_heldout
from knnstore.indexes.plan import IndexFolder
from knnstore.ingestion.assembly import assemble
from knnstore.ingestion.tasks import (
    DecodeTask,
    RecogniseTask,
    SamplesTask,
    TokenTask,
    decoded_bytes,
    keys_stage,
    recognise_model,
    remove_parts,
    tokenise,
    write_keys,
    write_samples,
)
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.wording import option


@dataclass(frozen=True, slots=True)
class Remaker:
    """Makes files of one segment again. ``spec``: the LM that made it; ``index``: the store's, if its plan is whole."""

    segment: Segment
    index: IndexFolder[Any] | None
    spec: LmSpec
    corpus: tuple[str, ...]
    selection: Selection
    job: Job

    def _lm(self) -> LmSpec:
        """The LM for workers. Raises MismatchError unless it is the one that made the segment."""
        task = RecogniseTask(self.segment.root, self.spec, self.segment.order)
        recognition = self.job.run_one(recognise_model, task)
        if recognition.differing:
            raise MismatchError(
                f"{self.segment.root} was made by model {self.segment.plan.model.name!r}, and "
                f"{', '.join(recognition.differing)} of {self.spec.model} differ: give the model that made it with "
                f"{option('model')}"
            )
        return replace(self.spec, identity=recognition.identity)

    def metadata(self, name: str, record: FileRecord | None) -> str:
        """Write ``zarr.json`` of an array, or of the segment's group (``name`` is empty), as it was recorded."""
        path = self.segment.root / name / METADATA_FILE
        with tempfile.TemporaryDirectory() as folder:
            form = self.segment.form(name or "keys")
            group, array = create_array(Path(folder) / "segment" / "a", *form)
            write_atomically(path, (array if name else group).read_bytes())
        if record is not None and (damage := file_damage(self.segment.root, record)):
            raise CorruptStoreError(f"{path} {damage}: this Zarr writes it differently")
        return "from the plan"

    def values(self, chunk: int, record: FileRecord | None) -> str:
        """A chunk of values out of the index."""
        self._copy(TaskWriter(self.segment, {}), "values", chunk, record)
        return "from the index's copy"

    def keys(self, chunk: int, record: FileRecord | None) -> str:
        """A chunk of keys out of the index, else by the LM; says which in words."""
        try:
            with SegmentWriter(self.segment).task(keys_task(chunk)) as task:
                task.facts["rows"] = self._copy(task, "keys", chunk, record)
        except CorruptStoreError:
            self.job.run_one(write_keys, keys_stage(self.segment, self._lm()).tasks[chunk])
            same = record is not None and file_damage(self.segment.root, record) is None
            return "by the LM" if same or record is None else "by the LM, in other bytes than before"
        return "from the index's copy"

    def samples(self) -> str:
        """The int8 scales and the held-out queries, by the LM. Scales that are right stay.

        Raises CorruptStoreError where the LM can't make the scales: those of a compaction or a merge are its sources'.
        """
        root = self.segment.root
        path = root / "commits" / f"{SAMPLES_TASK}.json"
        record = load_commit(path) if path.is_file() else None
        facts = {name: value for name, value in (record.facts if record else {}).items() if name == "scales_of"}
        scales = next(
            (file for file in (record.files if record else ()) if file.path.startswith("key_scales/c/")), None
        )
        task = SamplesTask(root, self._lm())
        if scales is not None and file_damage(root, scales) is None:
            task = replace(task, kept=facts)
        elif facts:
            task = replace(task, scales_of=root.parent / str(facts["scales_of"]) if facts["scales_of"] else None)
        elif self.segment.plan.key_dtype == "int8":
            task = replace(task, crc32c=scales.crc32c if scales else -1)
        self.job.run_one(write_samples, task)
        return "by the LM"

    def layout(self) -> str:
        """The array of keys itself, without its chunks."""
        with SegmentWriter(self.segment).task(LAYOUT_TASK) as task:
            task.create("keys", self.segment.rows)
        return "recorded again"

    def tokens(self) -> str:
        """The documents, the values and the held-out tokens, from the corpus."""
        if self.segment.plan.key.task == "seq2seq":
            raise CorruptStoreError("pairs of texts aren't made again from their files: use a copy, or ingest again")
        if not self.corpus:
            raise CorpusError(f"it takes the corpus: give the paths that it was ingested from with {option('corpus')}")
        found = find_sources(self.corpus, self.selection, [self.segment.plan.text_field])
        if fingerprint(found) != self.segment.plan.sources:
            remedy = (
                f"its names and sizes aren't those that {self.segment.root} was made of: give the same paths, "
                f"{option('include')} and {option('exclude')} as for the ingest, from the same folder"
            )
            raise MismatchError.about("corpus", " ".join(self.corpus), remedy=remedy)
        spec = self._lm()
        reading = ReadOptions(text_field=self.segment.plan.text_field, errors=self.segment.plan.errors)  # type: ignore[arg-type]
        parts = plan_parts(found)
        make_folder(self.segment.root / "parts")
        list(self.job.runner.run(tokenise, (TokenTask(self.segment.root, spec, part, reading) for part in parts)))
        (self.segment.root / "commits" / f"{DOCUMENTS_TASK}.json").unlink(missing_ok=True)
        for name in ("values", "heldout"):  # so that what can't be read isn't taken for what was asked for
            (self.segment.root / name / METADATA_FILE).unlink(missing_ok=True)
        share = self.segment.plan.holdout
        assemble(
            self.segment,
            len(parts),
            lambda tokens, _, repeats: choose_heldout(tokens, share, repeats=repeats),
            self._decoded_bytes,
        )
        remove_parts(self.segment.root)
        return "from the corpus"

    def _decoded_bytes(self, texts: tuple[tuple[int, ...], ...]) -> list[int]:
        return self.job.run_one(decoded_bytes, DecodeTask(self.spec, texts))

    def _copy(self, task: TaskWriter, name: str, chunk: int, record: FileRecord | None) -> int:
        """Write a chunk of keys or values as the index has them; return its rows."""
        if self.index is None:
            raise CorruptStoreError(f"{self.segment.root} has no index to copy {name} from")
        begin = chunk * (size := self.segment.form(name).chunk_rows)
        lists, end = self.index.lists(self.segment.root.name), min(begin + size, self.segment.rows)
        file = task.write_chunk(name, chunk, gather_rows(lists, name, begin, end))
        if record is not None and (damage := file_damage(self.segment.root, record)):
            raise CorruptStoreError(f"{file} {damage}")
        return end - begin


_WORKS = {DOCUMENTS_TASK: "tokens", LAYOUT_TASK: "layout", SAMPLES_TASK: "samples"}


def work_of(path: str) -> tuple[str, int]:
    """What has to be made for a path inside a segment, and which chunk of it: ``keys/c/7/0`` is ``("keys", 7)``."""
    name, *inside = path.split("/")
    if name == "commits":
        number = re.fullmatch(r"keys-([0-9]+)\.json", inside[-1])
        return ("keys", int(number[1])) if number else (_WORKS.get(inside[-1].removesuffix(".json"), ""), 0)
    if path.endswith(METADATA_FILE):
        return "metadata", 0
    chunk = chunk_number(path) or 0
    if name in ("keys", "values"):  # which the index has as well
        return name, chunk
    task = DOCUMENTS_TASK if path == DOCUMENTS_FILE else ARRAYS[name].task if name in ARRAYS else ""
    return _WORKS.get(task, ""), chunk
