"""Who computes: chosen once for the process."""

from functools import lru_cache

import torch

from knnstore.indexes.compute.device import DeviceEngine
from knnstore.indexes.compute.kernel import load_kernel
from knnstore.indexes.compute.native import NativeEngine
from knnstore.indexes.compute.protocols import Engine, Joins
from knnstore.indexes.compute.reference import ReferenceEngine


@lru_cache(maxsize=1)
def host_engine() -> Engine:
    """Return the compiled kernel where there is one, else the reference."""
    kernel = load_kernel()
    return ReferenceEngine() if kernel is None else NativeEngine(kernel)


def joins_on(device: torch.device | None) -> Joins:
    """Return who joins on a device, on the host if it is None."""
    return host_engine() if device is None else DeviceEngine(device)
