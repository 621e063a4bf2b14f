"""Recognise the LM of a run as the store's own even if libraries or digests have changed since it was created."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from knnstore.datastore.segment import Segment, SegmentPlan
from knnstore.errors import MismatchError
from knnstore.ingestion.tasks import RecogniseTask, recognise_model
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.wording import option


@dataclass(frozen=True, slots=True)
class Partner:
    """The LM of this run as a segment records it: its identity is in ``plan``, and workers load it by ``spec``."""

    plan: SegmentPlan
    spec: LmSpec


def partner_of(segment: Segment, plan: SegmentPlan, spec: LmSpec, job: Job, *, allow: bool) -> Partner:
    """Return ``plan`` and ``spec`` with the segment's identity of the LM, if this LM made the segment.

    For another LM they are returned unchanged, and the caller reports the differences. Raises MismatchError if the same
    files make other keys with the libraries here, unless ``allow``.
    """
    made, given = segment.plan.model, plan.model
    renamed = replace(plan, model=replace(given, name=made.name))
    if renamed.model == made and segment.plan.versions.get("transformers") in (None, plan.versions["transformers"]):
        return Partner(renamed, spec)
    recognition = job.run_one(recognise_model, RecogniseTask(segment.root.absolute(), spec, segment.order))
    if recognition.differing == ("computation",):
        message = f"{segment.root} was made with other versions of the libraries: {recognition.keys}"
        if not allow:
            allowed = option("allow_mismatch", True)
            raise MismatchError(f"{message}. Use {_versions(segment.plan)}, or give {allowed} to accept this")
        job.reporter.say(f"mismatch  {message}")
    elif recognition.differing:
        return Partner(plan, spec)
    if recognition.keys:
        job.reporter.say(
            f"model     {segment.root} has digests of it by other versions of the libraries; it is the same LM: "
            f"{recognition.keys}"
        )
    identity = None if replace(given, name=made.name) == made else given
    return Partner(replace(plan, model=made), replace(spec, identity=identity))


def continued(earlier: SegmentPlan, plan: SegmentPlan, say: Callable[[str], None]) -> SegmentPlan:
    """Return ``plan`` with the library versions of ``earlier``, because finished work is kept; report changed ones."""
    if earlier.versions != plan.versions:
        say(
            f"versions  it was started with {_versions(earlier)} and continues with {_versions(plan)}: the last bits "
            "of its keys may differ"
        )
    return replace(plan, versions=earlier.versions)


def _versions(plan: SegmentPlan) -> str:
    return ", ".join(f"{name} {version}" for name, version in plan.versions.items())
