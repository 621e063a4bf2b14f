"""Check that a folder given as a model holds an LM; otherwise say what it holds and what to do. Imports no torch."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knnstore.errors import ModelError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_JSON = 2**28
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = "convert it with from_pretrained(…).save_pretrained(FOLDER) of its class in transformers"
_OTHER_FORMATS = {
    "*.onnx": "ONNX files, which are compiled for inference",
    "*.h5": "TensorFlow weights",
    "*.msgpack": "Flax weights",
    "*.nemo": "a NeMo archive",
    "*.distcp": "a distributed checkpoint, to be gathered with torch.distributed.checkpoint",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def require_lm(folder: Path) -> None:
    """Raise ModelError, with the contents and the next step, unless the folder has a config and all its weights.

    Reads names, sizes, the config and the headers of the weights.
    """
    if pointers := _pointers(folder):
        raise ModelError(
            f"model {folder}: {_listed(pointers)} {'is a pointer' if len(pointers) == 1 else 'are pointers'} of "
            "Git LFS, not the file itself: run 'git lfs install' and 'git lfs pull' in that folder"
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(_adapter(folder))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(_something_else(folder))
    _require_shards(folder)


def require_lm_file(path: Path) -> None:
    """Raise ModelError for a file given as a model, because a model is a folder."""
    if path.suffix == ".gguf":
        raise ModelError(_gguf(path, path.name))
    folder = path.resolve().parent
    raise ModelError(
        f"model {path} is a file, but a model is a folder with config.json, .safetensors weights and a tokenizer: "
        f"give {folder if (folder / 'config.json').is_file() else 'a folder written by save_pretrained'}"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a model. Raises ModelError if it isn't a JSON object of a plausible size."""
    return _read_object(folder, "config.json")


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in the folder's .safetensors files, from their headers.

    Raises ModelError for a file that is truncated or isn't safetensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = _header(folder, path)
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            try:
                shapes[name] = tuple(int(size) for size in tensor["shape"])
                end = int(tensor["data_offsets"][1])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise _unreadable(folder, path, f"its header doesn't describe {name[:60]!r}") from error
            if end > data:
                raise _unreadable(folder, path, "it is truncated: download or copy it again")
    return shapes


def _header(folder: Path, path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a .safetensors file and the number of bytes after it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LARGEST_JSON):
            raise _unreadable(folder, path, "it isn't a safetensors file or is truncated: download or copy it again")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _unreadable(folder, path, "its header is damaged: download or copy it again") from error
    if not isinstance(header, dict):
        raise _unreadable(folder, path, "its header is damaged: download or copy it again")
    return header, size - 8 - length


def _unreadable(folder: Path, path: Path, reason: str) -> ModelError:
    return ModelError(f"model {folder.name} ({folder}) can't be loaded: {path.name}: {reason}")


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        data = path.read_bytes() if path.stat().st_size <= _LARGEST_JSON else b""
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, path, f"it can't be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise _unreadable(folder, path, "it doesn't hold a JSON object")
    return value


def _require_shards(folder: Path) -> None:
    """Raise ModelError, with their names, if files in the index of a sharded checkpoint are missing."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    shards = _read_object(folder, index.name).get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise ModelError(
            f"model {folder} lacks {len(missing)} of {len(names)} weight files ({_listed(missing)}): "
            "download or copy them into that folder"
        )


def _pointers(folder: Path) -> list[str]:
    """Return the names of pointer files left by a clone without Git LFS."""
    patterns = ("*.safetensors", "*.json", "*.model", "*.gguf", *_PICKLES)
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern) if _is_pointer(path))


def _is_pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _adapter(folder: Path) -> str:
    base = _read_object(folder, "adapter_config.json").get("base_model_name_or_path")
    name = f" for {base}" if isinstance(base, str) and base.isprintable() and len(base) < 200 else ""
    return (
        f"model {folder} is an adapter (LoRA){name}, not a complete LM: merge them with "
        f"AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(FOLDER) of "
        "peft, save the tokenizer of the base model there too, and give that FOLDER"
    )


def _gguf(place: Path, name: str) -> str:
    folder = place if place.is_dir() else place.parent
    return (
        f"model {place} is GGUF, the format of llama.cpp: give the folder of .safetensors that it was made from, or "
        f"convert it with AutoModelForCausalLM.from_pretrained({str(folder)!r}, gguf_file={name!r})"
        ".save_pretrained(FOLDER) of transformers, and its AutoTokenizer likewise"
    )


def _something_else(folder: Path) -> str:  # noqa: PLR0911 - one return per kind of folder
    """Return what the folder holds instead of an LM, and the next step."""
    if (folder / "model_index.json").is_file():
        return f"model {folder} is a pipeline of diffusers, which generates images: give a causal LM"
    if names := sorted(path.name for path in folder.glob("*.gguf")):
        return _gguf(folder, names[0])
    snapshots = sorted(_within(folder, "snapshots/*/config.json"), key=lambda path: path.stat().st_mtime)
    if snapshots:
        return f"model {folder} is a folder of the hub's cache: give {snapshots[-1].parent} or the model's name"
    checkpoints = sorted(_within(folder, "checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        return f"model {folder} holds training checkpoints: give one of them, such as {checkpoints[-1].parent}"
    for pattern, words in _OTHER_FORMATS.items():
        if names := sorted(path.name for path in (*folder.glob(pattern), *folder.glob(f"onnx/{pattern}"))):
            return (
                f"model {folder} has no .safetensors weights but {words} ({_listed(names)}): give the folder of "
                ".safetensors files that they were made from"
            )
    has_config = (folder / "config.json").is_file()
    weights = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if weights:
        return (
            f"model {folder} has no .safetensors weights ({_listed(weights)}); knnstore doesn't load pickles, because "
            f"they can run code: {_CONVERT}"
        )
    if has_config:
        return f"model {folder} has no .safetensors weights nor any others: put the weights beside its config.json"
    if any((folder / name).is_file() for name in _TOKENIZER_FILES) and not any(folder.glob("*.safetensors")):
        return f"model {folder} holds a tokenizer but no LM: add config.json and the weights"
    return f"model {folder}: the folder has no config.json; give a folder written by save_pretrained"


def _within(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if any(path.parent.glob("*.safetensors")))


def _listed(names: list[str]) -> str:
    """Return the first names and the number of others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
