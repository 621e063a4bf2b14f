"""Measure how fast an LM is in bfloat16 on this CPU, once per architecture and processor."""

import copy
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from knnstore.lm.loading import cpu_has_bfloat16, load_model
from knnstore.lm.spec import LmSpec, resolve_model

# Minimum speed-up to use bfloat16, which costs precision; one-second measurements vary by several percent.
LEAST_GAIN = 1.15
_SECONDS, _MOST_RUNS = 1.0, 20
_OPERATIONS = 2e10  # approximately, per run of a block: a fraction of a second
_FEWEST_TOKENS, _MOST_TOKENS, _WIDTH = 128, 1024, 128


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Stops a forward pass at the block whose inputs are captured."""


def choose_dtype(spec: LmSpec) -> tuple[LmSpec, float | None]:
    """Return ``spec`` with the dtype for the keys of a new store, and the relative speed of bfloat16 that decided it.

    On a CPU, ``auto`` is float32 unless bfloat16 is at least 15 % faster; for a GPU see ``load_model``. Native support
    doesn't decide this, because libraries may still compute in float32, so one block of the LM is timed in both. The
    result is measured once per LM and processor, and the store records the dtype, so that all its keys are made alike.
    """
    on_cpu = spec.device == "cpu" or (spec.device == "auto" and not torch.cuda.is_available())
    if spec.dtype != "auto" or not on_cpu or not cpu_has_bfloat16():
        return spec, None
    half = replace(spec, dtype="bfloat16")
    speed = remembered_speed(resolve_model(spec.model), lambda: bfloat16_speed(load_model(half).model))
    return (half if speed is not None and speed >= LEAST_GAIN else replace(spec, dtype="float32")), speed


def remembered_speed(folder: Path, measure: Callable[[], float | None]) -> float | None:
    """Return the speed of the LM in ``folder`` in bfloat16 relative to float32; None if ``measure`` can't tell.

    The result of ``measure`` for LMs of this configuration and size on this processor is kept in the user's cache
    folder, so that all processes choose alike. A missing, damaged or read-only cache costs another measurement.
    """
    file = _cache_file(folder)
    if file is None:
        return measure()
    if (known := _read(file)) is not None:
        return known
    speed = measure()
    return speed if speed is None else _keep(file, speed)


def bfloat16_speed(model: nn.Module) -> float | None:
    """Return the speed of a block of the LM in bfloat16 relative to float32, from about a second of alternate runs.

    None if the blocks of the LM can't be run separately.
    """
    try:
        with torch.inference_mode():
            return _measured(model)
    except Exception:  # model families raise all kinds of errors; then the speed is unknown
        return None


def _measured(model: nn.Module) -> float:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    block = max(lists, key=_weights)[0]
    args, kwargs = _inputs(model, block)
    runs: dict[torch.dtype, Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        runs[dtype] = partial(copy.deepcopy(block).to(dtype), *_cast(args, dtype), **_cast(kwargs, dtype))
        runs[dtype]()  # one-time set-up isn't counted
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in runs}
    started = time.perf_counter()
    while len(seconds[torch.float32]) < _MOST_RUNS and time.perf_counter() - started < _SECONDS:
        for dtype, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[dtype].append(time.perf_counter() - began)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])  # the least disturbed run of each


def _inputs(model: Any, block: nn.Module) -> tuple[Any, Any]:
    """Return the arguments of a block when the model reads a few windows of tokens."""
    captured: list[tuple[Any, Any]] = []

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        captured.append((args, kwargs))
        raise _Reached

    tokens = int(min(max(_OPERATIONS / (2 * max(1, _weights(block))), _FEWEST_TOKENS), _MOST_TOKENS))
    config = model.config.get_text_config()
    width = min(_WIDTH, int(getattr(config, "max_position_embeddings", None) or _WIDTH))
    ids = torch.arange(max(1, tokens // width) * width).reshape(-1, width) % int(config.vocab_size)
    given = {"input_ids": ids, "use_cache": False}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with suppress(_Reached):
            model(**given)
    finally:
        handle.remove()
    return captured[0]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a block's arguments with every floating-point tensor in ``dtype``."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cache_file(folder: Path) -> Path | None:
    """Return the cache file for such an LM on such a processor; None if the user has no folder for it."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        about = hashlib.sha256((folder / "config.json").read_bytes())
        sizes = sorted(path.stat().st_size for path in folder.glob("*.safetensors"))
    except (OSError, RuntimeError):  # no HOME and no entry in the user database
        return None
    about.update(f"{sizes} {_processor()} {torch.__version__}".encode())
    return cache / "knnstore" / "bfloat16" / f"{about.hexdigest()[:32]}.json"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{platform.machine()} {platform.processor()}"


def _read(file: Path) -> float | None:
    try:
        speed = json.loads(file.read_bytes())["speed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    valid = isinstance(speed, int | float) and not isinstance(speed, bool) and math.isfinite(speed) and speed > 0
    return float(speed) if valid else None


def _keep(file: Path, speed: float) -> float:
    """Write the speed and return it, or the speed of another process that was first."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            written = Path(folder) / file.name
            written.write_text(json.dumps({"speed": speed}) + "\n", encoding="utf-8")
            try:
                os.link(written, file)
            except FileExistsError:
                if (first := _read(file)) is not None:
                    return first
                written.replace(file)  # replaces a damaged file
    return speed
