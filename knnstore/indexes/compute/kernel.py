"""The compiled kernel: two C files that are compiled on first use and cached in the user's cache folder.

It is optional: without a compiler, or with ``KNNSTORE_KERNEL=off``, NumPy and torch do the same work.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.c", "filling.c"))
SWITCH = "KNNSTORE_KERNEL"
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
_SECONDS = 120
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class KernelWarning(UserWarning):
    """The kernel could not be built or loaded; searches are slower, with the same results."""


class Survivors(ctypes.Structure):
    """The struct ``TopK`` of kernel.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("distances", "values", "tags", "counts", "thresholds", "work")),
        *((name, ctypes.c_int64) for name in ("capacity", "stride", "k")),
    ]


def load_kernel() -> Any:
    """Return the kernel, compiled if necessary; None if there is none. A failure is reported as a warning."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no") or compiler is None or os.name != "posix":
        return None
    try:
        return _declared(_loaded(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"the search kernel can't be built with {compiler} ({str(reason).strip()[-300:]}): searches run without "
            f"it, more slowly; set {SWITCH}=off to skip the attempt",
            KernelWarning,
            stacklevel=3,
        )
        return None


def _loaded(compiler: str) -> Any:
    folder = _cache_folder()
    if folder is None:  # no place for a cache: compile for this process only
        with tempfile.TemporaryDirectory(prefix="knnstore-") as own:
            return ctypes.CDLL(str(_built(compiler, Path(own) / "kernel.so")))
    path = folder / f"kernel-{_digest(compiler)}.so"
    if path.is_file() and _is_private(path):
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # truncated by a full disk, for example
            path.unlink()
    return ctypes.CDLL(str(_built(compiler, path)))


def _built(compiler: str, path: Path) -> Path:
    """Compile to ``path``, which is replaced atomically, since other processes may compile at the same time."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, "-o", name, *map(str, SOURCES), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        Path(name).chmod(0o700)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _cache_folder() -> Path | None:
    """Return a cache folder that belongs to this user and that nobody else can write to; None if there is none."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "knnstore"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or it isn't writable
        return None
    return folder if _is_private(folder) and os.access(folder, os.W_OK) else None


def _is_private(path: Path) -> bool:
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & _WRITABLE_BY_OTHERS


def _digest(compiler: str) -> str:
    """Return a digest of all that the machine code depends on; machines with other processors may share the folder."""
    texts = [source.read_text(encoding="utf-8") for source in SOURCES]
    parts = [*texts, compiler, *_FLAGS, platform.machine(), platform.processor()]
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
        parts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _declared(library: Any) -> Any:
    pointer, number, single, top_k = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.POINTER(Survivors)
    functions = {
        "checksums": (ctypes.c_int, []),
        "damaged_block": (number, [*[pointer] * 4, number]),
        "scan_bytes": (number, [number]),
        "panel_size": (number, []),
        "nearest_lists_bytes": (number, [number] * 3),
        "smallest": (number, [pointer, number, number, pointer, pointer]),
        "nearest_lists": (None, [pointer, *[number] * 3, pointer, number, *[pointer] * 3, single, *[pointer] * 3]),
        "encode_residuals": (
            None,
            [pointer, number, number, pointer, pointer, number, pointer, single, *[pointer] * 3],
        ),
        "select_nearest": (None, [top_k, number, pointer, pointer, pointer]),
        "unit_distances_of": (None, [*[pointer] * 3, number, number, *[pointer] * 4]),
        "take_items": (None, [pointer, number, number, pointer]),
        "will_need": (None, [pointer, pointer, *[number] * 3]),
        "offer_scores": (None, [top_k, pointer, number, number, *[pointer] * 4]),
        "scan_lists": (None, [top_k, pointer, number, number, *[pointer] * 5]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def address(array: np.ndarray[Any, Any] | None) -> int | None:
    """Return the address of an array's data; None for None."""
    return None if array is None else array.__array_interface__["data"][0]  # faster than through ctypes


def addresses(*arrays: np.ndarray[Any, Any] | None) -> list[int | None]:
    """Return the addresses of the arrays' data."""
    return [address(array) for array in arrays]
