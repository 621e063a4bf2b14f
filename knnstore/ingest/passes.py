"""The LM in a task: the very one that the store is planned with, and what it makes of a segment's windows.

torch and transformers are imported when a task runs, so that the process which only hands out tasks stays small.
"""

from collections.abc import Callable
from socket import gethostname
from typing import TYPE_CHECKING, Any

import numpy as np

from knnstore.datastore.segment import Segment
from knnstore.errors import MismatchError
from knnstore.lm.spec import LmSpec
from knnstore.windows import Windows

if TYPE_CHECKING:
    from knnstore.lm.forward import KeyModel

# Tokens a forward pass, padding included: few enough for a CPU's cache, enough to keep a GPU busy.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
TokenReader = Callable[[int, int, int], "np.ndarray[Any, Any]"]


def key_model_of(spec: LmSpec, segment: Segment | None = None) -> "KeyModel":
    """The LM, loaded once a process.

    Raises MismatchError if it isn't the one that the segment was planned with, or runs otherwise here: on a cluster
    of unequal machines the keys would differ.
    """
    from knnstore.lm.forward import key_model  # noqa: PLC0415 - see the module

    model = key_model(spec)
    if segment is None:
        return model
    compute = f"{model.loaded.dtype} on {model.loaded.device.type}"
    if compute != segment.plan.compute:
        raise MismatchError(
            f"{gethostname()} runs the LM in {compute}, the store's keys are made in {segment.plan.compute}: "
            "give --dtype and --device that every machine has, or use machines of one kind"
        )
    if model.loaded.identity != segment.plan.model:
        raise MismatchError(f"{gethostname()} has another LM at {spec.model} than the one that the keys are made with")
    return model


def window_keys_of(model: "KeyModel", windows: Windows, tokens: TokenReader, shrunk: int = 1) -> Any:
    """Rows and keys of the windows, a batch at a time; ``shrunk`` divides the tokens of a forward pass."""
    from knnstore.lm.forward import window_keys  # noqa: PLC0415 - see the module

    most = _BATCH_TOKENS.get(model.loaded.device.type, _BATCH_TOKENS["cpu"])
    return window_keys(model, windows, tokens, max(1, most // shrunk))


def stored_tokens(segment: Segment, windows: Windows) -> TokenReader:
    """Reads tokens of stored documents; all that the windows need is fetched at once."""
    first_row = segment.documents.first_row
    context = segment.plan.key.context
    low = max(int(windows.row.min()) - context, 0)
    values = segment.values(low, min(int((windows.row + windows.scored).max()), segment.rows))
    return lambda document, begin, end: values[first_row[document] + begin - low : first_row[document] + end - low]


def heldout_tokens(segment: Segment, windows: Windows) -> TokenReader:
    """Reads tokens of the held-out parts of documents."""
    documents = {int(document): segment.heldout(int(document)) for document in np.unique(windows.document)}
    return lambda document, begin, end: documents[document][begin:end]


def place_of(segment: Segment, row: int, *, heldout: bool = False) -> str:
    """The document and the position in it of a row, or of a place among the held-out tokens, in words."""
    table = segment.documents
    if not heldout:
        document = int(table.locate(np.array([row]))[0])
        return f"{table[document]}, token {row - int(table.first_row[document])}"
    document = int(np.searchsorted(table.heldout_first + table.heldout_tokens, row, side="right"))
    position = row - int(table.heldout_first[document]) + int(table.tokens[document])
    return f"{table[document]}, token {position}, which is held out"
