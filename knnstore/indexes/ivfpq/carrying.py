"""Carry an index over to a copied segment: make its lists under the quantisers of a source.

If everything that the quantisers were trained on is copied, quantisers and codes are kept. If documents are omitted,
because they were removed or not selected, no trace of them may remain in the quantisers: these are recomputed from the
copied keys of each list (see ``recentre``), without training or assigning again.
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

_SAMPLE_BYTES = 12  # per number of the sample: decoded, its residual, and a copy while the codebooks are trained


@dataclass(frozen=True, slots=True)
class RecentreTask:
    """Make the quantisers of an index from those of the index ``given``, for the copied segment ``target``."""

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
    if not any(each.index and source.tokens.any() for each, source in zip(listed, sources, strict=True)):
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
        if folder.commits.damaged():  # an earlier run left damaged files
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
    """Return the plan of quantisers that are recomputed from a segment's keys and the lists under ``plan``.

    By default, a query searches at least as many keys as if the segment had been indexed by itself.
    """
    same = {field.name: getattr(plan, field.name) for field in fields(IvfPqPlan)}
    nprobe = plan.nprobe
    if nprobe >= choose_nprobe(plan.trained_rows, plan.nlist, None):  # else the user chose it
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
    """Recompute and save the quantisers; ``advance`` is called with the number of lists done."""
    folder, given = task.folder, task.given
    segment = Segment(segment_root(folder.store, task.target))
    sources = [Segment(source.segment) for source in task.sources]
    origins, parts = Origins(segment, sources), []
    for number, (source, listed) in enumerate(zip(sources, task.sources, strict=True)):
        if listed.index is None or not source.rows:
            continue
        table = source.documents
        others = np.setdiff1d(np.arange(len(table)), origins.documents(number))
        hidden = RowRanges.of_documents(table.first_row, table.tokens, others)
        parts.append(SegmentLists(given, source, 0, hidden))
    save_quantiser(folder, *recentre(load_quantiser(given), parts, folder.plan, advance))


def _listed(source: KeptDocuments, base: Datastore, given: IvfPqFolder) -> Listed:
    root = source.segment.root
    indexed = root.parent.parent.resolve() == base.root.resolve() and root.name in base.manifest.indexed
    return Listed(root.absolute(), given.absolute() if indexed else None)


def _leaves_out(base: Datastore, plan: IvfPqPlan, sources: Sequence[KeptDocuments]) -> bool:
    """Return whether any document with keys that the quantisers may have been trained on isn't copied."""
    # documents that were removed before the training were not seen by it
    unseen = load_removed(base.root, plan.removed) if plan.removed == base.manifest.removed else {}
    copied = {source.segment.root.resolve(): source.documents[source.rows] for source in sources}
    for segment in base.segments:
        documents = np.flatnonzero(segment.documents.tokens)
        taken = copied.get(segment.root.resolve(), np.empty(0, np.int64))
        if len(np.setdiff1d(documents, np.union1d(taken, unseen.get(segment.root.name, taken)))):
            return True
    return False
