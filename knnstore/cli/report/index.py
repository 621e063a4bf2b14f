"""The final report of an index build."""

from pathlib import Path

from knnstore.cli.report.words import shown_store
from knnstore.indexing.job import DRIFT_DUE, GROWTH_DUE, IndexReport
from knnstore.sizes import format_size


def index_text(report: IndexReport, store: Path) -> str:
    """Return the size of the index, its recall and the next step."""
    plan, check = report.plan, report.check
    queries = "held-out" if check.source == "heldout" else "stored"
    return (
        f"index     {plan.nlist:,} lists, {report.bytes / report.rows:.0f} bytes per key\n"
        f"check     recall@{check.k} {check.recall:.3f} at nprobe {check.nprobe}, {check.recall_quantised:.3f} from "
        f"the codes only ({check.queries} {queries} queries against all keys)\n"
        f"{_drift(report)}{_dropped(report)}"
        f"next      knnstore score --store {shown_store(store)}"
    )


def _dropped(report: IndexReport) -> str:
    if not report.dropped:
        return ""
    freed = f"{format_size(report.freed)} freed" if report.freed else "their space is freed when the last reader ends"
    return f"dropped   {report.dropped:,} keys in corpus order, {freed}; the lists hold a copy\n"


def _drift(report: IndexReport) -> str:
    if report.drift is None:
        return ""
    grown = report.rows / report.plan.trained_rows
    due = report.drift > DRIFT_DUE or grown > GROWTH_DUE
    advice = ": train again with 'knnstore index --overwrite'" if due else ", no need to train again"
    return (
        f"drift     keys added since training have {report.drift:.2f} times the expected quantisation error; "
        f"{grown:.1f} times as many keys as at training{advice}\n"
    )
