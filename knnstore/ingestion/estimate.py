"""Estimate the disk space that a corpus needs from a sample of its text, before it is tokenised."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

from knnstore.corpus.listing import Source
from knnstore.corpus.options import ReadOptions
from knnstore.corpus.parts import Parts
from knnstore.corpus.sampling import sample_text
from knnstore.datastore.segment import Segment
from knnstore.diskspace import require_room
from knnstore.files import free_bytes
from knnstore.ingestion.plan import row_bytes
from knnstore.ingestion.tasks import text_tokens
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job

_FILES = 8  # number of files that are sampled
_SURE = 0.8  # share of the estimate that must be free: lower than 1, so that no sufficient disk is refused
_MOST_EXPANDED = 10  # maximum bytes of text per byte of a compressed file


@dataclass(frozen=True, slots=True)
class EstimateTask:
    """Tokenise a sample of some files."""

    spec: LmSpec
    sources: tuple[Source, ...]
    options: ReadOptions

    @property
    def name(self) -> str:
        """Return the name of the task, for messages."""
        return "estimate"


def require_disk(segment: Segment, spec: LmSpec, parts: Parts, reading: ReadOptions, job: Job) -> None:
    """Raise DiskFullError, with both numbers, if the remaining text and its keys can't fit on the disk.

    No text is read if there is room for the most tokens that the files could hold. Pairs of texts aren't estimated.
    """
    if segment.plan.key.task == "seq2seq":
        return
    size = sum(source.bytes for source in _wanted_whole(parts))
    if size * _MOST_EXPANDED * row_bytes(segment) <= free_bytes(segment.root):
        return
    task = EstimateTask(spec, tuple(_spread(_wanted_whole(parts), size)), reading)
    tokens = size * job.run_one(tokens_a_byte, task)
    needed = int(_SURE * tokens * row_bytes(segment))
    require_room(segment.root, needed, f"the keys of about {tokens:,.0f} tokens, by a sample of the text,")


def tokens_a_byte(task: EstimateTask) -> float:
    """Return the number of tokens per byte on disk of the sampled files."""
    tokens, size = 0, 0.0
    for source in task.sources:
        text, share = sample_text(source, task.options)
        tokens += text_tokens(task.spec, text)
        size += share * source.bytes
    return tokens / size if size else 0.0


def _wanted_whole(parts: Parts) -> Iterator[Source]:
    """Yield the files that are read whole; how much text selected records hold isn't known."""
    for part in parts:
        wanted = part.records or repeat(None)
        yield from (source for source, records in zip(part.sources, wanted, strict=False) if records is None)


def _spread(sources: Iterable[Source], size: int) -> Iterator[Source]:
    """Yield some of the files, spread evenly over their total ``size`` in bytes."""
    places, end = [(number + 0.5) * size / _FILES for number in range(_FILES)], 0
    for source in sources:
        end += source.bytes
        if places and places[0] <= end:
            yield source
            places = [place for place in places if place > end]
