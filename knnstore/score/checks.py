"""What has to hold before anything is scored: the LM made the keys, and the memory is enough."""

from knnstore.datastore.manifest import ModelIdentity
from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError, ResourceError
from knnstore.lm.forward import KeyModel
from knnstore.sizes import format_size

# Measured resident memory of a process with torch, transformers and faiss imported, and the least left for a block.
_BASE_BYTES = 900_000_000
_LEAST_BLOCK_BYTES = 300_000_000


def require_same_model(store: Datastore, model: KeyModel) -> None:
    """Raise MismatchError, naming what differs, unless ``model`` made the keys of ``store``."""
    made, given = store.manifest.model, model.loaded.identity
    told = [name for name in ("weights", "config", "tokenizer", "vocabulary") if _differs(made, given, name)]
    if told:
        raise MismatchError(
            f"{store.root} was made by model {made.name!r} ({made.weights[:12]}), not by {given.name!r} "
            f"({given.weights[:12]}): {', '.join(told)} differ. Give the model that made it with --model"
        )
    if model.point.layer != store.manifest.key.layer:
        raise MismatchError(f"{store.root} holds keys of {store.manifest.key.layer}, not {model.point.layer}")


def _differs(made: ModelIdentity, given: ModelIdentity, name: str) -> bool:
    return bool(getattr(made, name) != getattr(given, name))


def block_memory(memory: int, model: KeyModel) -> int:
    """Bytes for a block, of ``memory`` for the process. Raises ResourceError that says what would be enough."""
    weights: int = sum(p.numel() * p.element_size() for p in model.loaded.model.parameters() if p.device.type == "cpu")
    left = memory - _BASE_BYTES - 2 * weights
    if left < _LEAST_BLOCK_BYTES:
        needed = _BASE_BYTES + 2 * weights + _LEAST_BLOCK_BYTES
        raise ResourceError(f"--memory {format_size(memory)} is too little: give {format_size(needed)} or more")
    return left
