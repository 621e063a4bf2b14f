"""A type of index from outside the package: flat, which keeps nothing but its plan and compares with every key."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from knnstore.indexes.exact import exact_search
from knnstore.indexes.plan import IndexPlan, load_check, new_index, segment_reference
from knnstore.indexes.protocols import IndexType
from knnstore.indexes.registry import INDEX_TYPES
from knnstore.indexes.work import Work, new_segments
from knnstore.planning import IndexResources
from knnstore.records import from_json


@dataclass(frozen=True)
class FlatPlan(IndexPlan):
    kind: str = "flat"
    nlist: ClassVar = 1
    seed: ClassVar = 0


@dataclass(frozen=True)
class FlatInfo:
    rows: int
    check: object
    words: ClassVar = "every key"


class FlatSearch:
    def __init__(self, store, folder):
        self.store, self.folder, self.plan, self.nprobe = store, folder, folder.plan, 1

    @property
    def check(self):
        return load_check(self.folder, [segment_reference(each) for each in self.store.segments if each.rows])

    def search(self, queries, k, nprobe=None, *, method="lists", **arguments):
        return exact_search(self.store, queries, k, **arguments)

    def prepare(self):
        pass

    def words(self, method, nprobe, k=0):
        return "every key"

    def list_sizes(self):
        return np.array([self.store.rows])

    def within(self, first, last):
        return self


class Flat(IndexType):
    def parse(self, value, where):
        return from_json(FlatPlan, value, where)

    def plan(self, store, options, job, present):
        folder, new = present or new_index(store.root, FlatPlan(), None), new_segments(store, trains=present is None)
        return Work(folder, new, IndexResources(0, 0, 0, 1), present is None, "any width, as they are")

    def fill(self, folder, segment, resources, job):
        folder.list_commits(segment_reference(segment)).prepare()

    def open(self, store, folder, *, checked=True, device=None):
        return FlatSearch(store, folder)

    def describe(self, folder, rows, check):
        return FlatInfo(rows, check)


INDEX_TYPES["flat"] = Flat()
