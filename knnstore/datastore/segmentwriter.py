"""Write a segment task by task; each task is marked done once its files are on the device.

A task records its files in the order of the calls. The forms of the arrays are defined in ``segment.ARRAYS``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.arrays import create_array, write_chunk
from knnstore.datastore.chunkwriter import ChunkWriter
from knnstore.datastore.commits import begin_part
from knnstore.datastore.layout import LAYOUT_TASK, SEGMENT_PLAN
from knnstore.datastore.segment import Segment, SegmentPlan, keys_task

MOST_QUERIES = 1024


class SegmentWriter:
    """Write and commit the tasks of a segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    @classmethod
    def begin(cls, root: Path, plan: SegmentPlan) -> "SegmentWriter":
        """Begin the segment at ``root`` under this plan, or continue it."""
        begin_part(root, SEGMENT_PLAN, plan)
        return cls(Segment(root))

    def lacks(self, task: str) -> bool:
        """Return whether a task isn't done yet."""
        return self.segment.commits.find(task) is None

    @contextmanager
    def task(self, name: str, **facts: Any) -> Iterator["TaskWriter"]:
        """Yield a task to write; it is committed if the context ends without an error."""
        task = TaskWriter(self.segment, facts)
        yield task
        self.segment.commits.commit(name, task.files, **task.facts)

    def lay_out_keys(self, rows: int | None = None) -> None:
        """Create the array of keys unless that is done. ``rows``: their number, if the documents aren't written yet."""
        if self.lacks(LAYOUT_TASK):
            with self.task(LAYOUT_TASK) as task:
                task.create("keys", self.segment.rows if rows is None else rows)

    def write_keys(self, chunk: int, keys: np.ndarray[Any, Any]) -> int:
        """Write a chunk of stored keys (n, d); return n."""
        with self.task(keys_task(chunk), rows=len(keys)) as task:
            task.write_chunk("keys", chunk, keys)
        return len(keys)


class TaskWriter:
    """Write the files of one task. ``facts``: further entries of its commit record."""

    def __init__(self, segment: Segment, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.files: list[Path] = []
        self._segment = segment

    def file(self, name: str) -> Path:
        """Return the path of a file of the task, which the caller writes."""
        self.files.append(self._segment.root / name)
        return self.files[-1]

    def create(self, name: str, rows: int) -> None:
        """Create an array without chunks."""
        self.files += create_array(self._segment.array_path(name), *self._segment.form(name, rows))

    def write_chunk(self, name: str, chunk: int, block: np.ndarray[Any, Any]) -> Path:
        """Write a chunk of an existing array; return its file."""
        self.files.append(write_chunk(self._segment.array_path(name), chunk, block))
        return self.files[-1]

    @contextmanager
    def appending(self, **rows: int) -> Iterator[list[ChunkWriter]]:
        """Create arrays, given as names and numbers of rows, and yield a writer for each to append rows to."""
        writers = []
        for name, count in rows.items():
            self.create(name, count)
            write = partial(write_chunk, self._segment.array_path(name))
            writers.append(ChunkWriter(write, self._segment.form(name, count).chunk_rows))
        yield writers
        for writer in writers:
            writer.finish()
            self.files += writer.results

    def write_whole(self, **arrays: np.ndarray[Any, Any]) -> None:
        """Create small arrays, given by name, and write each as one chunk."""
        begin = len(self.files)
        for name, array in arrays.items():
            self.create(name, len(array))
            if len(array):
                self.write_chunk(name, 0, array)
        # the group's metadata, which the arrays share, is recorded once
        self.files[begin:] = dict.fromkeys(self.files[begin:])

    def write_queries(self, tokens: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> None:
        """Write up to 1024 queries, evenly spaced, of those given: float32 (n, d).

        ``tokens``: int64 (n,), the positions of their tokens in the segment's array ``heldout``.
        """
        chosen = np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES), dtype=np.int64)
        self.write_whole(queries=queries[chosen].astype(np.float32), query_tokens=tokens[chosen].astype(np.int64))
        self.facts["queries"] = len(chosen)

    def write_sources(self, tokens: Int64, blocks: Iterable[Any]) -> None:
        """Write the sources of all documents, of ``tokens`` tokens each, int64 (documents,), and their offsets."""
        with self.appending(sources=int(tokens.sum()), source_offsets=len(tokens) + 1) as (sources, offsets):
            for block in blocks:
                sources.append(block)
            offsets.append(np.concatenate([[0], np.cumsum(tokens)]))
