"""Make a copied segment as a resumable job: plan, tables, chunks of keys."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.adopting import own_segment
from knnstore.datastore.edits import Edit
from knnstore.datastore.layout import SEGMENT_PLAN
from knnstore.datastore.origins import COPY_FOLDER, KeptDocuments, write_kept
from knnstore.datastore.segment import Segment, SegmentPlan
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.sweeping import discard_begun, unfinished
from knnstore.errors import MismatchError
from knnstore.living.copying import copy_stage, copy_tables
from knnstore.lm.identity import is_stable, may_be_same
from knnstore.records import fingerprint, to_json
from knnstore.scheduling import Job


def copied_plan(sources: Sequence[KeptDocuments]) -> SegmentPlan:
    """Return the plan of a copy: what its sources agree on, and the digest of the documents taken from them.

    Raises MismatchError unless all keys are of one LM, layer, window and dtype.
    """
    first = sources[0].segment.plan
    for other in (source.segment for source in sources[1:]):
        for name in ("model", "key", "key_dtype"):
            wanted, given = _compared(getattr(first, name)), _compared(getattr(other.plan, name))
            if wanted != given and not (name == "model" and may_be_same(first.model, other.plan.model)):
                raise MismatchError(f"{other.root} can't join {sources[0].segment.root}: {name} {given}, not {wanted}")
    plans = [source.segment.plan for source in sources]
    # Prefer a model whose identity depends on the libraries' versions: then the keys are checked when the copy is used.
    models = [plan.model for plan in plans if not is_stable(plan.model.config)] or [first.model]
    versions: dict[str, str] = {}
    for name in sorted({name for plan in plans for name in plan.versions}):
        versions[name] = _all(plan.versions.get(name, "") for plan in plans)
    taken = [
        [source.segment.fingerprint, *(_digest(part) for part in (source.documents, source.rows, source.heldout))]
        for source in sources
    ]
    return SegmentPlan(
        model=models[0],
        key=first.key,
        key_dtype=first.key_dtype,
        chunk_rows=first.chunk_rows,
        sources=fingerprint({"copied": taken}),
        text_field=_all(plan.text_field for plan in plans),
        errors=_all(plan.errors for plan in plans),
        holdout=max(plan.holdout for plan in plans),
        compute=_all(plan.compute for plan in plans),
        versions=versions,
        special_tokens=plans[0].special_tokens if len({plan.special_tokens for plan in plans}) == 1 else False,
        padding=plans[0].padding if len({plan.padding for plan in plans}) == 1 else None,
    )


def copy_segment(edit: Edit, sources: Sequence[KeptDocuments], job: Job) -> Segment:
    """Make the segment in the writer's store, or continue it; discard other unfinished copies there.

    The caller publishes the segment and discards the scratch folders of copies after that.
    """
    plan = copied_plan(sources)
    path = _unfinished_copy(edit, plan)
    discard_begun(edit.root, COPY_FOLDER, but=path)
    path = path or own_segment(edit, None)
    write_kept(path, sources)
    writer = SegmentWriter.begin(path, plan)
    segment = writer.segment
    segment.commits.forget_damaged()  # left by an earlier run
    copy_tables(writer, sources)
    copy_stage(segment, sources).resume(job)
    return segment


def _unfinished_copy(edit: Edit, plan: SegmentPlan) -> Path | None:
    for path in unfinished(edit.root):
        if (path / COPY_FOLDER).exists() and (path / SEGMENT_PLAN).is_file() and Segment(path).plan == plan:
            return own_segment(edit, path)
    return None


def _all(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values if str(value)}))


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _compared(value: Any) -> Any:
    """Return the value without its name, which is only for display, for the comparison of plans."""
    plain = to_json(value) if hasattr(value, "__dataclass_fields__") else value
    return {k: v for k, v in plain.items() if k != "name"} if isinstance(plain, dict) else plain
