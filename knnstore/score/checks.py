"""What has to hold before anything is scored: the memory is enough."""

from knnstore.errors import ResourceError
from knnstore.lm.forward import KeyModel
from knnstore.sizes import format_size

# Measured resident memory of a process with torch, transformers and faiss imported, and the least left for a block.
_BASE_BYTES = 900_000_000
_LEAST_BLOCK_BYTES = 300_000_000


def block_memory(memory: int, model: KeyModel) -> int:
    """Bytes for a block, of ``memory`` for the process. Raises ResourceError that says what would be enough."""
    weights: int = sum(p.numel() * p.element_size() for p in model.loaded.model.parameters() if p.device.type == "cpu")
    left = memory - _BASE_BYTES - 2 * weights
    if left < _LEAST_BLOCK_BYTES:
        needed = _BASE_BYTES + 2 * weights + _LEAST_BLOCK_BYTES
        raise ResourceError(f"--memory {format_size(memory)} is too little: give {format_size(needed)} or more")
    return left
