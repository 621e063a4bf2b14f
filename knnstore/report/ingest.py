"""What an ingest says at its end."""

from knnstore.ingest import IngestReport
from knnstore.report.words import shown_store
from knnstore.sizes import format_size

_SHOWN_TYPES = 8


def ingest_text(report: IngestReport) -> str:
    """What an ingest made, and what to do next."""
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    kept = f"; {report.tasks_kept} tasks were done before" if report.tasks_kept else ""
    return (
        f"{_differences(report)}{_left_out(report)}"
        f"store     {report.store}: {report.rows:,} keys, {format_size(report.bytes)}, "
        f"{report.bytes / max(1, report.rows):.0f} bytes a key{speed}{kept}\n"
        f"next      knnstore index --store {shown_store(report.store)}"
    )


def _left_out(report: IngestReport) -> str:
    """The files that were not read."""
    if not report.left_out:
        return ""
    types = [f"{files:,} {label}" for label, files in report.left_out.items()]
    rest = f", {len(types) - _SHOWN_TYPES:,} more types" if len(types) > _SHOWN_TYPES else ""
    return f"left out  {', '.join(types[:_SHOWN_TYPES])}{rest}\n"


def _differences(report: IngestReport) -> str:
    """What became of the documents, where there was a store already."""
    if report.documents == report.added and not report.gone and not report.copies:
        return ""
    told = [f"{report.added:,} added", f"{report.changed:,} changed", f"{report.unchanged:,} unchanged"]
    if report.copies:
        told.append(f"{report.copies:,} left out as copies of others")
    if report.withheld:
        told.append(f"{report.withheld:,} were removed earlier and stay out (--readmit)")
    if report.gone:
        told.append(f"{report.gone:,} gone" + (" and removed" if report.pruned else " (--prune removes them)"))
    return f"documents {', '.join(told)}\n"
