"""What an import and an export say at their end."""

from knnstore.exchange.exporting import ExportReport
from knnstore.exchange.importing import ImportReport
from knnstore.report.words import shown_store
from knnstore.sizes import format_size


def import_text(report: ImportReport) -> str:
    """What an import made, and what to do next."""
    speed = f", {report.keys_per_second:,.0f} keys/s" if report.keys_per_second else ""
    kept = f"; {report.tasks_kept} chunks were there before" if report.tasks_kept else ""
    shown = shown_store(report.store)
    return (
        f"store     {report.store}: {report.rows:,} keys of {report.dimension}, {format_size(report.bytes)}, "
        f"{report.bytes / report.rows:.0f} bytes a key{speed}{kept}\n"
        f"next      knnstore index --store {shown}"
    )


def export_text(report: ExportReport) -> str:
    """What an export wrote."""
    lines = [f"export    {report.rows:,} keys of {report.dimension}, {format_size(report.bytes)}"]
    return "\n".join(lines + [f"          {path}" for path in report.files])
