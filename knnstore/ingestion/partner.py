"""The LM of a run and the one that a store was begun with: the same though libraries or digests have changed."""

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
    """How the LM of this run is known in a segment: by the identity in ``plan``, and to workers by ``spec``."""

    plan: SegmentPlan
    spec: LmSpec


def partner_of(segment: Segment, plan: SegmentPlan, spec: LmSpec, job: Job, *, allow: bool) -> Partner:
    """``plan`` and ``spec`` with the segment's own identity of the LM, if it is the one that made the segment.

    They are returned as they are for another LM, whose differences the caller knows how to tell. Raises MismatchError
    for the same files that make other keys here, unless other keys are allowed.
    """
    made, given = segment.plan.model, plan.model
    renamed = replace(plan, model=replace(given, name=made.name))
    if renamed.model == made and segment.plan.versions.get("transformers") in (None, plan.versions["transformers"]):
        return Partner(renamed, spec)
    recognition = job.run_one(recognise_model, RecogniseTask(segment.root.absolute(), spec, segment.order))
    if recognition.differing == ("computation",):
        sentence = f"{segment.root} was made with other versions of the libraries: {recognition.keys}"
        if not allow:
            allowed = option("allow_mismatch", True)
            raise MismatchError(f"{sentence}. Use {_versions(segment.plan)}, or give {allowed} if you mean it")
        job.reporter.say(f"mismatch  {sentence}")
    elif recognition.differing:
        return Partner(plan, spec)
    if recognition.keys:
        job.reporter.say(
            f"model     {segment.root} knows it by digests that other versions of the libraries made; it is the same "
            f"LM: {recognition.keys}"
        )
    identity = None if replace(given, name=made.name) == made else given
    return Partner(replace(plan, model=made), replace(spec, identity=identity))


def continued(begun: SegmentPlan, plan: SegmentPlan, say: Callable[[str], None]) -> SegmentPlan:
    """``plan`` as it was begun under other versions of the libraries; what is there stays as it is."""
    if begun.versions != plan.versions:
        say(
            f"versions  it was begun with {_versions(begun)} and goes on with {_versions(plan)}: the last bits of its "
            "keys may differ"
        )
    return replace(plan, versions=begun.versions)


def _versions(plan: SegmentPlan) -> str:
    return ", ".join(f"{name} {version}" for name, version in plan.versions.items())
