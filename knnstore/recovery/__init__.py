"""``knnstore repair``: what is damaged is made again, from the copies, the LM or the corpus, and checked."""

from knnstore.recovery.job import RepairOptions, RepairReport, repair

__all__ = ["RepairOptions", "RepairReport", "repair"]
