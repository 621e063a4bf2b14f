"""Resources of this machine. Doesn't import torch, so that the process that distributes tasks stays small."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def available_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    from dask.system import cpu_count  # noqa: PLC0415 - dask isn't needed to print help

    return int(cpu_count())


def visible_gpus(driver: Path = _NVIDIA) -> tuple[str, ...]:
    """Return the NVIDIA GPUs usable by this process and this torch, named as in ``CUDA_VISIBLE_DEVICES``."""
    if not driver.is_dir() or _torch_is_for_cpus():
        return ()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name for name in chosen.split(",") if name.strip() not in ("", "-1"))
    return tuple(str(number) for number, _ in enumerate(driver.iterdir()))


def _torch_is_for_cpus() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True
