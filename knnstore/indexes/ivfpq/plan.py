"""The plan of an IVF-PQ index, and its layout on disk.

::

    index/<name>/            as for every index (see ``knnstore.indexes.plan``), plus
        quantizer/           zarr.json, cells/, centroids/, codebooks/          float32; axes/ with a rotation
        lists/<segment>/     zarr.json, and in list order, uncompressed:
            offsets/         (nlist + 1,)      int64             list l is rows [offsets[l], offsets[l + 1])
            keys/            (rows, dimension) float16 | int8    as in the segment
            codes/           (rows, pq_bytes)  uint8             PQ code of key − centroid
            values/          (rows,)           uint16 | uint32
            rows/            (rows,)           uint32 | uint64   the segment's row
        runs/<segment>/      temporary, while its lists are being made
        runs/sample/         temporary, until the quantisers are trained
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knnstore.indexes.plan import IndexFolder, IndexPlan, SegmentReference, open_folder
from knnstore.planning import parse_rotation
from knnstore.records import LATER, from_json

FORMAT_VERSION = 1
_LARGEST = 2**40


@dataclass(frozen=True, slots=True)
class IvfPqPlan(IndexPlan):
    """Everything that the quantisers depend on, which doesn't include memory or the number of workers.

    ``rotation``: of the residuals before encoding, ``OPQ`` or ``PCA`` and the number of dimensions kept.
    ``trained_on``: the segments that the sample was drawn from, without the documents in the table ``removed``.
    """

    version: int
    nlist: int
    cells: int
    pq_bytes: int
    train_rows: int
    seed: int
    nprobe: int
    dimension: int
    key_dtype: str
    trained_on: tuple[SegmentReference, ...]
    removed: str | None = None
    rotation: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"index format {self.version}; this knnstore reads version {FORMAT_VERSION}")
        sizes = [self.nlist, self.cells, self.pq_bytes, self.train_rows, self.nprobe, self.dimension]
        sizes += [number for segment in self.trained_on for number in (segment.rows, segment.chunk_rows)]
        if not all(0 < size <= _LARGEST for size in sizes) or not self.trained_on:
            raise ValueError("a size is not positive")
        if max(self.cells, self.nprobe) > self.nlist or self.coded_dimension % self.pq_bytes:
            raise ValueError(
                f"impossible nlist {self.nlist}, cells {self.cells}, nprobe {self.nprobe}, pq_bytes {self.pq_bytes}"
            )

    @property
    def coded_dimension(self) -> int:
        """Return the number of dimensions that PQ encodes: fewer than the keys have if the rotation drops some."""
        return self.dimension if self.rotation is None else parse_rotation(self.rotation, self.dimension)[1]

    @property
    def trained_rows(self) -> int:
        """Return the number of keys of the segments that the quantisers were trained on."""
        return sum(segment.rows for segment in self.trained_on)


@dataclass(frozen=True, slots=True)
class RecentredPlan(IvfPqPlan):
    """The plan of quantisers that ``recentre`` made from others, with the keys of the segment ``trained_on``.

    ``recentred``: name of the index that had those keys in its lists.
    """

    recentred: str = ""


IvfPqFolder = IndexFolder[IvfPqPlan]


def parse_plan(value: Any, where: str) -> IvfPqPlan:
    """Return the plan in a JSON value. Raises CorruptStoreError, which names ``where`` it is from."""
    return from_json(RecentredPlan if isinstance(value, dict) and "recentred" in value else IvfPqPlan, value, where)


def open_ivfpq(root: Path, name: str) -> IvfPqFolder:
    """Open the index with that name in the store at ``root``. Raises the errors of ``open_folder``."""
    return open_folder(root, name, parse_plan)
