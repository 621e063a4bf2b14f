"""The final report of a repair."""

from knnstore.cli.report.words import shown_store
from knnstore.files import path_of
from knnstore.recovery.job import RepairReport


def repair_text(report: RepairReport) -> str:
    """Return how many files were repaired, which were not and why, and the next step."""
    lines = []
    for damage, why in report.left[:20]:
        rows = "" if damage.rows is None else f" (rows {damage.rows[0]:,} to {damage.rows[1]:,})"
        lines.append(f"left      {damage.path}{rows} {damage.problem}\n          {why}")
    if report.resumed:
        lines.append("repair    an earlier repair was interrupted: the index is built again")
    if not report.repaired and not report.left:
        lines.append(f"repair    nothing {'else ' if report.resumed else ''}is damaged")
    else:
        left = f", {len(report.left):,} can't be repaired" if report.left else "; all checksums match"
        lines.append(f"repair    {len(report.repaired):,} damaged files repaired{left}")
    if not report.left:
        lines.append(f"next      knnstore score --store {shown_store(path_of(report.store))}")
    return "\n".join(lines)
