"""Safetensors files under one naming, read tensor by tensor: where checkpoints of different origin meet.

Canonical names are those of transformers' ``Sam3VideoModel.state_dict()``: ``detector_model.*``, ``tracker_neck.*``,
``tracker_model.*``. Pickle files are never opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import ModelError

INDEX_FILE = "model.safetensors.index.json"
DETECTOR, NECK, TRACKER = "detector_model.", "tracker_neck.", "tracker_model."
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_DERIVED = (".position_ids", ".inv_freq", ".original_inv_freq")
"""Buffers that older transformers stored and that every model computes itself."""
NAMES_SHOWN = 4
"""How many differing tensors an error lists."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where every tensor lies, by canonical name; nothing is in memory."""

    where: Mapping[str, tuple[Path, str]]
    """Canonical name -> file and the name inside it."""
    shapes: Mapping[str, Shape]

    def part(self, *prefixes: str) -> Weights:
        """The tensors under these prefixes."""
        names = [n for n in self.where if n.startswith(prefixes)]
        return Weights({n: self.where[n] for n in names}, {n: self.shapes[n] for n in names})

    def __or__(self, other: Weights) -> Weights:
        return Weights({**self.where, **other.where}, {**self.shapes, **other.shapes})

    def read(
        self, prefix: str, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """The tensors under ``prefix``, which is cut off their names; floating point ones become ``dtype``."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.tensors(n for n in self.where if n.startswith(prefix)):
            to = dtype if tensor.is_floating_point() else None
            # A tensor that needs no conversion is still a view of the file's mapping: copy it out.
            found[name[len(prefix) :]] = tensor.to(device=device, dtype=to, copy=True)
        return found

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes in the order of names: equal content, equal digest."""
        total = hashlib.sha256()
        for name, tensor in self.tensors(sorted(self.where)):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            raw: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            total.update(raw)
        return total.hexdigest()

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Views of the mapped files: nothing is copied into memory."""
        files: dict[Path, Any] = {}
        for name in names:
            path, inside = self.where[name]
            if path not in files:
                files[path] = safe_open(path, framework="pt")
            yield name, files[path].get_tensor(inside)


def scan(folder: Path, model_type: str) -> Weights:
    """Locate all tensors of a folder with ``model.safetensors``, or shards and their index.

    Raises:
        ModelError: no safetensors, only pickle files, a missing shard or a damaged file.
    """
    canonical = _namer(model_type)
    where: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, Shape] = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for inside in file.keys():  # noqa: SIM118 - not a dict
                    name = canonical(inside)
                    if name.endswith(_DERIVED):
                        continue
                    where[name], shapes[name] = (path, inside), tuple(file.get_slice(inside).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError("a weights file is damaged", f"{path}: {error}", "fetch it again") from error
    return Weights(where, shapes)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError("the index of a sharded checkpoint is damaged", str(index), "fetch it again") from error
        missing = [f.name for f in files if not f.is_file()]
        if missing:
            raise ModelError(f"shards are missing: {', '.join(missing[:NAMES_SHOWN])}", str(folder), "fetch them again")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(
            f"only pickled weights ({pickles[0]}), which can run code when opened, so they never are",
            str(folder),
            "use a checkpoint saved as safetensors",
        )
    raise ModelError("no model.safetensors", str(folder), "name a folder or Hub id with safetensors weights")


def _namer(model_type: str) -> Callable[[str], str]:
    """How names inside files of this kind of model become canonical ones."""
    if model_type == "sam3_video":
        return _from_video
    return _from_tracker if model_type == "sam3_tracker_video" else _from_detector


def _from_video(name: str) -> str:
    # transformers 5.23 writes tracker_model.tracker_model.* (a renaming rule of its tracker fires twice).
    return name.removeprefix(TRACKER) if name.startswith(TRACKER + TRACKER) else name


def _from_detector(name: str) -> str:
    return name if name.startswith((DETECTOR, NECK, TRACKER)) else DETECTOR + name


def _from_tracker(name: str) -> str:
    if name.startswith((TRACKER + DETECTOR, TRACKER + NECK, TRACKER + TRACKER)):  # as transformers 5.23 saves it
        return name.removeprefix(TRACKER)
    if name.startswith((DETECTOR, NECK, TRACKER)):
        return name
    if name.startswith("vision_encoder.neck."):
        return NECK + name.removeprefix("vision_encoder.neck.")
    return DETECTOR + name if name.startswith("vision_encoder.") else TRACKER + name


def check_fit(weights: Weights, wanted: Mapping[str, Shape], what: str) -> None:
    """Compare names and shapes, tensor by tensor.

    Raises:
        ModelError: names the first few tensors that are missing, unknown or of another shape.
    """
    missing = sorted(wanted.keys() - weights.shapes.keys())
    unknown = sorted(weights.shapes.keys() - wanted.keys())
    other = sorted(n for n in wanted.keys() & weights.shapes.keys() if wanted[n] != weights.shapes[n])
    found = [f"{len(n)} {kind} ({_some(n)})" for kind, n in (("missing", missing), ("unknown", unknown)) if n]
    if other:
        shown = [f"{n} is {weights.shapes[n]} instead of {wanted[n]}" for n in other[:NAMES_SHOWN]]
        found.append(f"{len(other)} of another shape ({'; '.join(shown)}{' ...' * (len(other) > NAMES_SHOWN)})")
    if found:
        raise ModelError(f"the weights do not fit the configuration: tensors {', '.join(found)}", what)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + " ..." * (len(names) > NAMES_SHOWN)
