"""What a repair says at its end."""

from knnstore.objects.path import path_of
from knnstore.repair import RepairReport
from knnstore.report.words import shown_store


def repair_text(report: RepairReport) -> str:
    """How many damages are no more, what is left and why, and what to do next."""
    lines = []
    for damage, why in report.left[:20]:
        rows = "" if damage.rows is None else f" (rows {damage.rows[0]:,} to {damage.rows[1]:,})"
        lines.append(f"left      {damage.path}{rows} {damage.problem}\n          {why}")
    if report.resumed:
        lines.append("repair    an earlier one had been interrupted: the index is built again")
    if not report.repaired and not report.left:
        lines.append(f"repair    nothing {'else ' if report.resumed else ''}is damaged")
    else:
        left = f", {len(report.left):,} can't be" if report.left else "; every byte is as it was written"
        lines.append(f"repair    {len(report.repaired):,} damaged files made good again{left}")
    if not report.left:
        lines.append(f"next      knnstore score --store {shown_store(path_of(report.store))}")
    return "\n".join(lines)
