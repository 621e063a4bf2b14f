"""``per_token``: write the probabilities of every token by LM, store and mixture as Parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from knnstore.lm.loading import LoadedModel
from knnstore.mixing.mixture import Mixed
from knnstore.scoring.parquet_file import ParquetFile
from knnstore.scoring.passes import Block
from knnstore.scoring.texts import Texts

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


class TokenLog(ParquetFile):
    """Writes one row per token, block by block."""

    def __init__(self, path: str | Path, texts: Texts, model: LoadedModel) -> None:
        super().__init__(path, "per_token")
        self._texts = texts
        self._model = model

    def write(self, block: Block, mixed: Mixed, k: int) -> None:
        """Append a block with its mixed probabilities; agreement with the token is counted in the k nearest."""
        tokens, neighbours = block.tokens, block.evidence.neighbours
        document = self._texts.documents(tokens.rows)
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
        self.append(table)
