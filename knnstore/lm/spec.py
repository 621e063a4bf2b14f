"""Which LM: from what a user calls it to the folder that holds it, and what is known of it. Imports no torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from knnstore.datastore.manifest import ModelIdentity, task_of
from knnstore.errors import ModelError
from knnstore.lm.folders import require_lm, require_lm_file

SHIPPED_MODELS = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "wiki-lm"


@dataclass(frozen=True, slots=True)
class LmSpec:
    """Which LM, and how to run it.

    ``layer``: where its keys are, which says whether it is a causal LM or an encoder-decoder model. ``dtype`` ``auto``
    is float32 on a CPU, bfloat16 on a GPU (float16 on one without it); ``device`` ``auto`` a GPU where there is one.
    ``identity``: the LM's own, for workers on a segment that knows the same LM by another (see ``recognition``).
    """

    model: str
    layer: str = "ffn-input"
    dtype: str = "auto"
    device: str = "auto"
    identity: ModelIdentity | None = None

    @property
    def task(self) -> str:
        """``causal`` or ``seq2seq``."""
        return task_of(self.layer)


@dataclass(frozen=True, slots=True)
class LmFacts:
    """What a job has to know of an LM before it runs it; ``layer`` and ``path`` are where its keys really lie.

    ``bfloat16_speed``: how many times as fast as in float32 it is in bfloat16, where ``dtype`` was chosen by that.
    """

    identity: ModelIdentity
    layer: str
    path: str
    dimension: int
    parameters: int
    default_context: int
    longest_context: int
    dtype: str
    device: str
    bfloat16_speed: float | None = None


@dataclass(frozen=True, slots=True)
class Recognition:
    """Whether the LM with this ``identity`` made some keys: ``differing`` names what differs, empty for the same LM.

    ``keys``: how far its keys are from the stored ones, in words, where they had to decide; else empty.
    """

    identity: ModelIdentity
    differing: tuple[str, ...] = ()
    keys: str = ""


def default_model() -> str:
    """``$KNNSTORE_MODEL``, else the LM that is shipped with the package."""
    return os.environ.get("KNNSTORE_MODEL") or DEFAULT_MODEL


def resolve_model(model: str) -> Path:
    """The local folder of a model: a folder; a name in ``$KNNSTORE_MODELS``, here, or shipped; or a hub id.

    Raises ModelError that says where it was looked for, or what is there instead of an LM.
    """
    places = [Path(model)]
    if os.environ.get("KNNSTORE_MODELS"):
        places.insert(0, Path(os.environ["KNNSTORE_MODELS"]) / model)
    places.append(SHIPPED_MODELS / model)
    try:
        folders = [place for place in places if model and place.is_dir()]
        folder = next((place for place in folders if (place / "config.json").is_file()), None) or next(
            iter(folders), None
        )
        is_file = Path(model).is_file()
    except (OSError, ValueError):  # too long, or with a null byte
        raise ModelError(f"no model {model[:100]!r}: no folder can have this name; give the folder of an LM") from None
    if folder is None and is_file:
        require_lm_file(Path(model))
    folder = folder or _download(model, places)
    require_lm(folder)
    return folder


def _download(model: str, places: list[Path]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only a hub id needs it
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    looked = ", ".join(str(place) for place in places)
    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
        return Path(snapshot_download(model, allow_patterns=wanted))
    except HFValidationError:
        raise ModelError(f"no model {model!r}: looked at {looked}; give the folder of one, or its name") from None
    except Exception as error:  # the hub client raises a dozen unrelated types when it can't be reached
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelError(
            f"no model {model!r}: looked at {looked}, and on the hub ({reason}); check the name, or download it where "
            f"there is a network with 'hf download {model} --local-dir FOLDER' and give that folder"
        ) from None


def weight_bytes(model: str) -> int:
    """Return the bytes of the weights' files of a model that ``--model`` names."""
    return sum(path.stat().st_size for path in resolve_model(model).glob("*.safetensors"))
