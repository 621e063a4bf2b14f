"""What an index build says at its end."""

from pathlib import Path

from knnstore.build import IndexReport
from knnstore.report.words import shown_store


def index_text(report: IndexReport, store: Path) -> str:
    """What an index is, and what to do next."""
    plan, check = report.plan, report.check
    queries = "held-out" if check.source == "heldout" else "stored"
    return (
        f"index     {plan.nlist:,} lists, {report.bytes / plan.rows:.0f} bytes a key\n"
        f"check     recall@{check.k} {check.recall:.3f} at nprobe {check.nprobe}, {check.recall_quantised:.3f} from "
        f"the codes alone ({check.queries} {queries} queries against all keys)\n"
        f"next      knnstore score --store {shown_store(store)}"
    )
