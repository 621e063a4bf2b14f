"""``--per-token``: what LM, store and mixture say of every token, as Parquet."""

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.atomic import storage_errors
from knnstore.lm.loading import LoadedModel
from knnstore.mixing.mixture import Mixed
from knnstore.outputs import output_file
from knnstore.score.passes import Block
from knnstore.score.texts import Texts

_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("position", pa.int64()),
        ("token_id", pa.int64()),
        ("token", pa.string()),
        ("log_p_lm", pa.float64()),
        ("log_p_store", pa.float64()),
        ("log_p", pa.float64()),
        ("weight", pa.float64()),
        ("agreeing_neighbours", pa.int32()),
        ("first_distance", pa.float32()),
    ]
)


class TokenLog:
    """Writes one row a token, block by block; the file is renamed into place when it is whole."""

    def __init__(self, path: str | Path, texts: Texts, model: LoadedModel) -> None:
        self._path = output_file(str(path), "--per-token")
        self._aside = self._path.with_name(f"{self._path.name}.tmp")
        self._texts = texts
        self._model = model
        with storage_errors("write", self._path):
            self._file = self._aside.open("wb")
            self._writer = pq.ParquetWriter(self._file, _SCHEMA, compression="zstd")

    def write(self, block: Block, mixed: Mixed, k: int) -> None:
        """Append a block and what a mixture makes of it; the k nearest are compared with the token."""
        tokens, neighbours = block.tokens, block.evidence.neighbours
        document = np.searchsorted(self._texts.first + self._texts.tokens, tokens.rows, side="right")
        with np.errstate(divide="ignore"):
            log_store = np.log(mixed.memory_p)
        agreeing = (neighbours.values[:, :k] == tokens.targets[:, None]).sum(axis=1)
        table = pa.table(
            {
                "document": [self._texts.names[int(index)] for index in document],
                "position": tokens.rows - self._texts.first[document],
                "token_id": tokens.targets,
                "token": [self._model.decode([int(token)]) for token in tokens.targets],
                "log_p_lm": tokens.log_p,
                "log_p_store": log_store,
                "log_p": mixed.log_p,
                "weight": mixed.weight,
                "agreeing_neighbours": agreeing.astype(np.int32),
                "first_distance": neighbours.distances[:, 0],
            },
            schema=_SCHEMA,
        )
        with storage_errors("write", self._path):
            self._writer.write_table(table)

    def __enter__(self) -> "TokenLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors("write", self._path):
            self._writer.close()
            self._file.close()
            if kind is None:
                self._aside.replace(self._path)
            else:
                self._aside.unlink(missing_ok=True)
