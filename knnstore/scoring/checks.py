"""Check before scoring that the memory suffices."""

from knnstore.lm.forward import KeyModel
from knnstore.lm.spec import weight_bytes
from knnstore.sizes import require_memory

# Measured resident memory of a process with torch, transformers and faiss imported, and minimum memory of a block.
_BASE_BYTES = 900_000_000
_LEAST_BLOCK_BYTES = 300_000_000


def check_memory_first(memory: int, model: str) -> None:
    """Raise ResourceError, before the LM is loaded, if it exceeds the memory."""
    _block(memory, weight_bytes(model))


def block_memory(memory: int, model: KeyModel) -> int:
    """Return the bytes for a block, out of ``memory`` for the process. Raises ResourceError with the bytes needed."""
    weights: int = sum(p.numel() * p.element_size() for p in model.loaded.model.parameters() if p.device.type == "cpu")
    return _block(memory, weights)


def _block(memory: int, weights: int) -> int:
    needed = _BASE_BYTES + 2 * weights + _LEAST_BLOCK_BYTES
    require_memory(memory, needed)
    return memory - _BASE_BYTES - 2 * weights
