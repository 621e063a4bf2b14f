"""What an ingest says at its end."""

from knnstore.ingest import IngestReport
from knnstore.report.words import shown_store
from knnstore.sizes import format_size


def ingest_text(report: IngestReport) -> str:
    """What an ingest made, and what to do next."""
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    kept = f"; {report.tasks_kept} tasks were done before" if report.tasks_kept else ""
    return (
        f"store     {report.store}: {report.rows:,} keys, {format_size(report.bytes)}, "
        f"{report.bytes / report.rows:.0f} bytes a key{speed}{kept}\n"
        f"next      knnstore index --store {shown_store(report.store)}"
    )
