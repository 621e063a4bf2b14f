"""The final report of an ingest."""

from knnstore.cli.report.words import shown_store
from knnstore.ingestion.job import IngestReport
from knnstore.sizes import format_size

_SHOWN_TYPES = 8


def ingest_text(report: IngestReport) -> str:
    """Return what was added and left out, the size of the store and the next step."""
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    kept = f"; {report.tasks_kept} tasks from an earlier run" if report.tasks_kept else ""
    return (
        f"{_differences(report)}{_left_out(report)}"
        f"store     {report.store}: {report.rows:,} keys, {format_size(report.bytes)}, "
        f"{report.bytes / max(1, report.rows):.0f} bytes per key{speed}{kept}\n"
        f"next      knnstore index --store {shown_store(report.store)}"
    )


def _left_out(report: IngestReport) -> str:
    """Return the files that were left out, by type."""
    if not report.left_out:
        return ""
    types = [f"{files:,} {label}" for label, files in report.left_out.items()]
    rest = f", {len(types) - _SHOWN_TYPES:,} more types" if len(types) > _SHOWN_TYPES else ""
    return f"left out  {', '.join(types[:_SHOWN_TYPES])}{rest}\n"


def _differences(report: IngestReport) -> str:
    """Return how the documents compare with those of the existing store; empty for a new one."""
    if report.documents == report.added and not report.gone and not report.copies:
        return ""
    counts = [f"{report.added:,} added", f"{report.changed:,} changed", f"{report.unchanged:,} unchanged"]
    if report.copies:
        counts.append(f"{report.copies:,} left out as copies")
    if report.withheld:
        counts.append(f"{report.withheld:,} removed earlier and still left out (--readmit adds them)")
    if report.gone:
        counts.append(
            f"{report.gone:,} no longer in the corpus" + (", removed" if report.pruned else " (--prune removes them)")
        )
    return f"documents {', '.join(counts)}\n"
