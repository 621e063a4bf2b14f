"""What an index build says at its end."""

from pathlib import Path

from knnstore.build import DRIFT_DUE, GROWTH_DUE, IndexReport
from knnstore.report.words import shown_store
from knnstore.sizes import format_size


def index_text(report: IndexReport, store: Path) -> str:
    """What an index is, and what to do next."""
    plan, check = report.plan, report.check
    queries = "held-out" if check.source == "heldout" else "stored"
    return (
        f"index     {plan.nlist:,} lists, {report.bytes / report.rows:.0f} bytes a key\n"
        f"check     recall@{check.k} {check.recall:.3f} at nprobe {check.nprobe}, {check.recall_quantised:.3f} from "
        f"the codes alone ({check.queries} {queries} queries against all keys)\n"
        f"{_drift(report)}{_dropped(report)}"
        f"next      knnstore score --store {shown_store(store)}"
    )


def _dropped(report: IndexReport) -> str:
    if not report.dropped:
        return ""
    freed = f"{format_size(report.freed)} freed" if report.freed else "their space is free when those who read them end"
    return f"dropped   {report.dropped:,} keys in corpus order, {freed}: the lists have them\n"


def _drift(report: IndexReport) -> str:
    if report.drift is None:
        return ""
    grown = report.rows / report.plan.trained_rows
    due = report.drift > DRIFT_DUE or grown > GROWTH_DUE
    advice = ": train anew with 'knnstore index --overwrite'" if due else ", no need to train anew"
    return (
        f"drift     keys added since the training: {report.drift:.2f} times the quantisation error to expect; "
        f"{grown:.1f} times its keys in all{advice}\n"
    )
