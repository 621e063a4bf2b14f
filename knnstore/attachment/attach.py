"""Attach a store to an LM in memory, and detach it again."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from knnstore.attachment.defaults import AttachedMixture
from knnstore.attachment.mixer import MixedStep, Mixer
from knnstore.attachment.search import Search
from knnstore.datastore.manifest import KeyRecipe
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, KnnstoreError, ModelError
from knnstore.lm.causality import require_causal
from knnstore.lm.forward import KeyModel
from knnstore.lm.hooks import MixtureHooks
from knnstore.lm.loading import adopt_model
from knnstore.lm.matching import Allow, require_known_model, require_same_keys, require_same_task
from knnstore.mixing.setting import Setting
from knnstore.passages import Passages
from knnstore.recognition import window_of
from knnstore.wording import command


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """An LM, its store and their mixture, as needed to generate and attribute text."""

    model: KeyModel
    recipe: KeyRecipe
    search: Search
    passages: Passages
    mixed_by: AttachedMixture

    @property
    def setting(self) -> Setting:
        """Return the constants of the mixture."""
        return self.mixed_by.setting


class Attachment:
    """A store attached to an LM: until ``detach`` or the end of a ``with`` block, the LM returns the mixture's logits.

    ``setting``: the constants of the mixture; ``gated``: whether a gate weighs each token instead; ``source``: their
    origin as text. ``nprobe``: number of lists that a query searches; None if it searches every key.
    """

    def __init__(self, hooks: MixtureHooks, mixed_by: AttachedMixture, nprobe: int | None) -> None:
        self._hooks = hooks
        self.setting = mixed_by.setting
        self.gated = mixed_by.mixture.gate is not None
        self.source = mixed_by.source
        self.nprobe = nprobe

    def detach(self) -> None:
        """Restore the LM. Does nothing if the store is already detached."""
        self._hooks.detach()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        setting = self.setting
        more = f", cache={setting.cache}" * bool(setting.cache) + ", gated" * self.gated
        return f"Attachment(k={setting.k}, lambda_={setting.lambda_:g}, temperature={setting.temperature:g}{more})"


def attach_store(
    model: KeyModel,
    search: Search,
    mixed_by: AttachedMixture,
    *,
    on_step: Callable[[MixedStep], None] | None = None,
    only_here: bool = False,
) -> Attachment:
    """Attach the store of ``search`` to ``model``; with ``only_here``, only for this thread."""
    mixer = Mixer(search, mixed_by.mixture, mixed_by.suffixes, model.loaded.bos, on_step)
    hooks = MixtureHooks(model.loaded.model, model.point, mixer, only_here=only_here)
    return Attachment(hooks, mixed_by, search.nprobe)


def adopted_model(store: Datastore, model: Any, tokenizer: Any = None, allow: Allow | None = None) -> KeyModel:
    """Return an LM in memory, or the one in a wrapper, after checking that it makes the store's keys of a window.

    Raises ModelError if it isn't a causal LM or can't be run, MismatchError if it isn't the store's LM. If given,
    ``allow`` is called with the message about different keys instead.
    """
    require_known_model(store.root, store.manifest)
    loaded = adopt_model(model, tokenizer)
    require_same_task(store.root, store.manifest, loaded.identity.name, loaded.task)
    keyed = KeyModel(loaded, store.manifest.key.layer)
    try:
        require_causal(keyed)
        _require_store_of(store, keyed, allow)
    except KnnstoreError:
        raise
    except Exception as error:  # wrapped, offloaded and quantised models raise all kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{type(model).__name__} can't be run on token ids ({reason}): load it another way") from error
    return keyed


def _require_store_of(store: Datastore, model: KeyModel, allow: Allow | None) -> None:
    window = window_of(store.segments[0], model.loaded)
    if window is None:
        raise CorruptStoreError(f"{store.root} holds no tokens: check it for damage with {command('verify')}")
    require_same_keys(store.root, store.manifest, model, window, allow)
