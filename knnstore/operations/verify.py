"""``knnstore verify``."""

from knnstore.operations.shared import StoreName, find_store
from knnstore.progress import Reporter
from knnstore.verification.check import VerifyReport
from knnstore.verification.check import verify as verify_store


def verify(store: StoreName = None, *, reporter: Reporter | None = None) -> VerifyReport:
    """Read every byte of a store and compare it with its checksums."""
    return verify_store(find_store(store), reporter)
