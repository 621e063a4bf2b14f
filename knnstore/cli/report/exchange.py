"""The final reports of an import and an export."""

from knnstore.cli.report.words import shown_store
from knnstore.exchange.exporting import ExportReport
from knnstore.exchange.importing import ImportReport
from knnstore.sizes import format_size


def import_text(report: ImportReport) -> str:
    """Return a line about the imported store and the next step."""
    speed = f", {report.keys_per_second:,.0f} keys/s" if report.keys_per_second else ""
    kept = f"; {report.tasks_kept} chunks from an earlier run" if report.tasks_kept else ""
    shown = shown_store(report.store)
    return (
        f"store     {report.store}: {report.rows:,} keys of {report.dimension}, {format_size(report.bytes)}, "
        f"{report.bytes / report.rows:.0f} bytes per key{speed}{kept}\n"
        f"next      knnstore index --store {shown}"
    )


def export_text(report: ExportReport) -> str:
    """Return the exported keys, their size and the files."""
    lines = [f"export    {report.rows:,} keys of {report.dimension}, {format_size(report.bytes)}"]
    return "\n".join(lines + [f"          {path}" for path in report.files])
