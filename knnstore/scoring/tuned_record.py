"""``tuned.json``, beside the manifest: the result of ``knnstore tune``, and the text it was tuned on."""

from dataclasses import dataclass

from knnstore.datastore.edits import Edit
from knnstore.datastore.manifest import ModelIdentity
from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError
from knnstore.files import load_json
from knnstore.mixing.features import FEATURES, FEATURES_WITH_MATCHES
from knnstore.mixing.gate import Gate
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.records import from_json
from knnstore.wording import command

TUNED_FILE = "tuned.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Cross-validated perplexities: each document is predicted by a mixture tuned on the others."""

    lm: float
    constant: float
    gate: float | None


@dataclass(frozen=True, slots=True)
class TunedRecord:
    """A mixture for a store, and how it was found.

    ``weights`` and ``layer``: digest of the LM's weights, and the layer of the keys. ``rows``: number of keys in the
    store at the time; ``search``: how they were searched, and ``text``: what was scored, both as text. ``documents``:
    SHA-256 of the token ids of each document tuned on, which a report leaves out. ``alone``: the best constants without
    a cache. ``gate``: of the mixture with all sources of ``setting``. ``measured``: its quality.
    """

    version: int
    weights: str
    layer: str
    rows: int
    search: str
    text: str
    tokens: int
    documents: tuple[str, ...]
    setting: Setting
    alone: Setting
    spread: float
    gate: Gate | None
    measured: Measured

    def __post_init__(self) -> None:
        if self.version != _VERSION:
            raise ValueError(f"version {self.version}; this knnstore reads version {_VERSION}")
        if self.gate is not None and self.gate.features not in (FEATURES, FEATURES_WITH_MATCHES):
            raise ValueError(f"its gate was trained on other features: run {command('tune')} again")

    @property
    def mixture(self) -> Mixture:
        """Return the mixture, ready to use."""
        return Mixture(self.setting, self.gate, self.spread)


def load_tuned(store: Datastore) -> TunedRecord | None:
    """Return the store's record, or None. Raises CorruptStoreError, or MismatchError if it is for another LM's keys."""
    path = store.root / TUNED_FILE
    if not path.is_file():
        return None
    record = from_json(TunedRecord, load_json(path), str(path))
    require_same_keys(store, record.weights, record.layer, str(path))
    return record


def save_tuned(edit: Edit, record: TunedRecord) -> None:
    """Replace the store's record atomically. Raises LockedError if another writer has taken over the store."""
    edit.replace_record(edit.root / TUNED_FILE, record)


def require_same_keys(store: Datastore, weights: str, layer: str, where: str) -> None:
    """Raise MismatchError unless the store's keys are from this layer of the LM with these weights."""
    model: ModelIdentity = store.manifest.model
    if (weights, layer) != (model.weights, store.manifest.key.layer):
        raise MismatchError(
            f"{where} was tuned for {layer} keys of model {weights[:12]}, but {store.root} holds "
            f"{store.manifest.key.layer} keys of {model.weights[:12]}: tune again on neighbours from this store"
        )
