"""From a model's name to a local folder: packaged, on disk, or fetched from the Hub."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from pipeline.checkpoint_files import PICKLE_SUFFIXES
from pipeline.errors import ModelError

SAM3_HUB_ID = "facebook/sam3"
HUB_IDS = {
    "s0": "vil-uob/sam3-litetext-s0",
    "s1": "vil-uob/sam3-litetext-s1",
    "l": "vil-uob/sam3-litetext-l",
    "sam3": SAM3_HUB_ID,
}
"""Published checkpoints in transformers format, by the names of ``--model``."""

_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base error of whichever HTTP library the Hub client is built on."""
_WANTED = ("*.json", "*.safetensors", "merges.txt", "vocab.txt", "LICENSE*")
_WAYS_OUT = (
    "log in with `hf auth login` after accepting the licence on the model's page, name a local folder, "
    "or use --model tiny"
)


def find_folder(name: str, revision: str | None, half: str) -> Path:
    """The local folder of a model; fetches it from the Hub when it is not on disk.

    Args:
        name: ``tiny``, a folder, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        half: ``detector`` or ``tracker``: what is wanted from it, for messages.

    Raises:
        ModelError: cannot be had; names what is needed, its licence and the ways out.
    """
    if name == "tiny":
        return Path(str(files("models") / "tiny"))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(*_refuse_file(path))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix in PICKLE_SUFFIXES:
        raise ModelError("no such model folder", name, "check the path, or use --model tiny")
    if "/" not in name:
        raise ModelError(f"unknown model {name!r}", "", "use tiny, s0, s1, l, sam3, a Hub id or a local folder")
    return _fetch(name, revision, half)


def _refuse_file(path: Path) -> tuple[str, str, str]:
    if path.suffix in PICKLE_SUFFIXES:
        what = "a pickled checkpoint can run code when opened, so it never is"
        return what, str(path), "use a folder with safetensors weights"
    return "a model is a folder with config.json and model.safetensors, not a file", str(path), "name its folder"


def _fetch(hub_id: str, revision: str | None, half: str) -> Path:
    download: Callable[..., str] = snapshot_download
    try:
        return Path(download(hub_id, revision=revision, allow_patterns=list(_WANTED)))
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError) as error:
        why = "is gated" if isinstance(error, GatedRepoError) else "does not exist, or needs a login"
        raise _unavailable(hub_id, half, why) from error
    except (_TRANSPORT_ERROR, OSError) as error:  # offline, no connection, nothing cached
        raise _unavailable(hub_id, half, "cannot be reached and is not in the local cache") from error


def _unavailable(hub_id: str, half: str, why: str) -> ModelError:
    licence = "SAM License" if "sam3" in hub_id.lower() else "see its page"
    return ModelError(f"the {half} weights {hub_id} ({licence}) {_quiet(why)}", "Hugging Face Hub", _WAYS_OUT)


def _quiet(text: str) -> str:
    return " ".join(text.split())
