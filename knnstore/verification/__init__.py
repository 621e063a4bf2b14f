"""``knnstore verify``: every byte of a store against the checksums that were recorded when it was written."""

from knnstore.verification.check import UNRECORDED, VerifyReport, require_store, verify
from knnstore.verification.damage import Damage, RepairSource

__all__ = ["UNRECORDED", "Damage", "RepairSource", "VerifyReport", "require_store", "verify"]
