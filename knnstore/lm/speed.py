"""How fast an LM is in bfloat16 on this CPU: measured once per architecture and processor, and remembered."""

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

# How much faster bfloat16 has to be: it costs precision, and a measurement of a second varies by several percent.
LEAST_GAIN = 1.15
_SECONDS, _MOST_RUNS = 1.0, 20
_OPERATIONS = 2e10  # of one run of a block, about: a fraction of a second
_FEWEST_TOKENS, _MOST_TOKENS, _WIDTH = 128, 1024, 128


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Stops a forward pass at the block whose inputs are wanted."""


def choose_dtype(spec: LmSpec) -> tuple[LmSpec, float | None]:
    """``spec`` with the dtype that a new store's keys are to be made in, and the speed of bfloat16 that decided it.

    On a CPU an ``auto`` dtype is float32 unless bfloat16 is at least 15 % faster; a GPU's rule is ``load_model``'s.
    """
    on_cpu = spec.device == "cpu" or (spec.device == "auto" and not torch.cuda.is_available())
    if spec.dtype != "auto" or not on_cpu or not cpu_has_bfloat16():
        return spec, None
    half = replace(spec, dtype="bfloat16")
    speed = remembered_speed(resolve_model(spec.model), lambda: bfloat16_speed(load_model(half).model))
    return (half if speed is not None and speed >= LEAST_GAIN else replace(spec, dtype="float32")), speed


def remembered_speed(folder: Path, measure: Callable[[], float | None]) -> float | None:
    """How many times as fast as in float32 the LM in ``folder`` is in bfloat16; None where ``measure`` can't tell.

    The user's cache folder keeps what ``measure`` gave for LMs of this configuration and size on this processor, so
    that all processes choose alike. A cache that is lost, damaged or can't be written costs another measurement.
    """
    file = _cache_file(folder)
    if file is None:
        return measure()
    if (known := _read(file)) is not None:
        return known
    speed = measure()
    return speed if speed is None else _keep(file, speed)


def bfloat16_speed(model: nn.Module) -> float | None:
    """How many times as fast as in float32 a block of the LM is in bfloat16, by about a second of runs in turn.

    None for an LM whose blocks can't be run alone.
    """
    try:
        with torch.inference_mode():
            return _measured(model)
    except Exception:  # whatever a hundred model families raise: then nothing is known
        return None


def _measured(model: nn.Module) -> float:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    block = max(lists, key=_weights)[0]
    args, kwargs = _inputs(model, block)
    runs: dict[torch.dtype, Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        runs[dtype] = partial(copy.deepcopy(block).to(dtype), *_cast(args, dtype), **_cast(kwargs, dtype))
        runs[dtype]()  # what is set up once is not counted
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in runs}
    started = time.perf_counter()
    while len(seconds[torch.float32]) < _MOST_RUNS and time.perf_counter() - started < _SECONDS:
        for dtype, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[dtype].append(time.perf_counter() - began)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])  # the least disturbed of each


def _inputs(model: Any, block: nn.Module) -> tuple[Any, Any]:
    """What a block is called with when the model reads a few windows of tokens."""
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
    """A block's arguments, with every floating-point tensor in ``dtype``."""
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
    """Where the speed of such an LM on such a processor is remembered; None where the user has no folder for it."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        about = hashlib.sha256((folder / "config.json").read_bytes())
        sizes = sorted(path.stat().st_size for path in folder.glob("*.safetensors"))
    except (OSError, RuntimeError):  # no HOME and no entry in the table of users
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
    """Write the speed; returns that of another process which was first."""
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
                written.replace(file)  # in place of a damaged one
    return speed
