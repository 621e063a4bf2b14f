"""Taking an index along: the lists of a copied segment under quantisers that a source of it has.

Where all that the quantisers were trained on is copied, they stay, and so do the codes. Where something is left out,
because it was removed or not chosen, nothing of it may be left in them either: then they are made anew of the lists'
keys that are copied (see ``recentre``), without training or assigning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from knnstore.datastore.edits import Edit
from knnstore.datastore.layout import segment_root
from knnstore.datastore.origins import KeptDocuments, Origins
from knnstore.datastore.removed import load_removed
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree
from knnstore.indexes.adopting import own_index
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.plan import IvfPqFolder, IvfPqPlan, RecentredPlan, open_ivfpq
from knnstore.indexes.ivfpq.planning import index_size
from knnstore.indexes.ivfpq.quantiser import TASK, load_quantiser, load_training_errors, save_quantiser
from knnstore.indexes.ivfpq.recentre import recentre
from knnstore.indexes.ivfpq.regrouping import Listed, regroup_lists
from knnstore.indexes.ivfpq.train import PQ_ROWS
from knnstore.indexes.plan import new_index, segment_reference
from knnstore.planning import choose_nprobe, plan_resources
from knnstore.scheduling import Job

_SAMPLE_BYTES = 12  # a number of the sample: decoded, less its centroid, and once more while codebooks are trained


@dataclass(frozen=True, slots=True)
class RecentreTask:
    """Make the quantisers of an index of those that are ``given``, for the segment ``target`` that is copied."""

    folder: IvfPqFolder
    given: IvfPqFolder
    target: str
    sources: tuple[Listed, ...]


def carry_index(
    base: Datastore, edit: Edit, segment: Segment, sources: Sequence[KeptDocuments], job: Job
) -> IvfPqFolder | None:
    """See ``IndexType.carry``."""
    given = open_ivfpq(base.root, str(base.manifest.index))
    listed = tuple(_listed(source, base, given) for source in sources)
    if not any(one.index and source.tokens.any() for one, source in zip(listed, sources, strict=True)):
        return None
    whole = not _leaves_out(base, given.plan, sources)
    plan = given.plan if whole else recentred_plan(given.plan, segment)
    resources = plan_resources(
        index_size([segment, *(source.segment for source in sources if source.segment.rows)]),
        nlist=plan.nlist,
        pq_bytes=plan.pq_bytes,
        train_rows=1 if whole else _SAMPLE_BYTES * min(segment.rows, PQ_ROWS),
        memory=job.memory,
        workers=job.workers,
    )
    if whole and base.root.resolve() == edit.root.resolve():
        folder = given
    else:
        folder = own_index(edit, new_index(edit.root, plan, edit.epoch))
        if folder.commits.damaged():  # what an earlier run left of it is damaged
            remove_tree(folder.root)
        folder.begin()
        if folder.commits.find(TASK) is None and whole:
            save_quantiser(folder, load_quantiser(given), load_training_errors(given))
        elif folder.commits.find(TASK) is None:
            task = RecentreTask(folder.absolute(), given.absolute(), segment.root.name, listed)
            with job.reporter.bar("recentre", plan.nlist, "lists") as advance:
                job.runner.run_alone(recentre_quantisers, task, advance)
    regroup_lists(folder, segment, listed, resources.run_chunks, job)
    return folder


def recentred_plan(plan: IvfPqPlan, segment: Segment) -> RecentredPlan:
    """The plan of quantisers that are made of a segment's keys and of the lists under those of ``plan``.

    A query searches no fewer keys by default than it would if the segment had been indexed by itself.
    """
    same = {field.name: getattr(plan, field.name) for field in fields(IvfPqPlan)}
    nprobe = plan.nprobe
    if nprobe >= choose_nprobe(plan.trained_rows, plan.nlist, None):  # else the user has chosen it
        nprobe = max(nprobe, choose_nprobe(segment.rows, plan.nlist, None))
    return RecentredPlan(
        **same
        | {
            "nprobe": nprobe,
            "train_rows": min(plan.train_rows, segment.rows),
            "trained_on": (segment_reference(segment),),
            "removed": None,
        },
        recentred=plan.name,
    )


def recentre_quantisers(task: RecentreTask, advance: Callable[[float], None]) -> None:
    """Make and save the quantisers; ``advance`` is told of lists."""
    folder, given = task.folder, task.given
    segment = Segment(segment_root(folder.store, task.target))
    sources = [Segment(source.segment) for source in task.sources]
    origins, parts = Origins(segment, sources), []
    for number, (source, one) in enumerate(zip(sources, task.sources, strict=True)):
        if one.index is None or not source.rows:
            continue
        table = source.documents
        others = np.setdiff1d(np.arange(len(table)), origins.documents(number))
        hidden = RowRanges.of_documents(table.first_row, table.tokens, others)
        parts.append(SegmentLists(given, source, 0, hidden))
    save_quantiser(folder, *recentre(load_quantiser(given), parts, folder.plan, advance))


def _listed(source: KeptDocuments, base: Datastore, given: IvfPqFolder) -> Listed:
    root = source.segment.root
    mine = root.parent.parent.resolve() == base.root.resolve() and root.name in base.manifest.indexed
    return Listed(root.absolute(), given.absolute() if mine else None)


def _leaves_out(base: Datastore, plan: IvfPqPlan, sources: Sequence[KeptDocuments]) -> bool:
    """Whether a document with keys isn't copied that the quantisers may have been trained on."""
    # of documents that were removed before the training they have seen nothing
    unseen = load_removed(base.root, plan.removed) if plan.removed == base.manifest.removed else {}
    copied = {source.segment.root.resolve(): source.documents[source.rows] for source in sources}
    for segment in base.segments:
        documents = np.flatnonzero(segment.documents.tokens)
        taken = copied.get(segment.root.resolve(), np.empty(0, np.int64))
        if len(np.setdiff1d(documents, np.union1d(taken, unseen.get(segment.root.name, taken)))):
            return True
    return False
