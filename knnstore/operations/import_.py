"""``knnstore import``."""

from pathlib import Path

from knnstore.datastore.keycodec import KeyDtype
from knnstore.exchange.importing import ImportOptions, ImportReport, import_keys
from knnstore.exchange.memmaps import open_memmaps
from knnstore.exchange.rawfile import Form, KeyType, ValueType
from knnstore.operations.shared import StoreName
from knnstore.progress import Reporter
from knnstore.scheduling import Job


def import_(
    *,
    keys: str | Path,
    vals: str | Path,
    dim: int | None = None,
    rows: int | None = None,
    key_type: KeyType | None = None,
    value_type: ValueType | None = None,
    store: StoreName = None,
    model: str | None = None,
    key: str | None = None,
    check: bool = True,
    vocabulary: int | None = None,
    context: int | None = None,
    stride: int | None = None,
    key_dtype: KeyDtype = "float16",
    device: str = "auto",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ImportReport:
    """Import the memmaps of knnlm, knn-transformers or knn-box, or resume an interrupted import."""
    options = ImportOptions(
        store=None if store is None else str(store),
        model=model,
        key=key,
        check=check,
        vocabulary=vocabulary,
        context=context,
        stride=stride,
        key_dtype=key_dtype,
        device=device,
        overwrite=overwrite,
    )
    reporter = reporter or Reporter()
    memmaps = open_memmaps(Path(keys), Path(vals), Form(dim, rows, key_type, value_type))
    reporter.say(f"memmaps   {memmaps.found}")
    return import_keys(memmaps, options, Job(reporter=reporter))
