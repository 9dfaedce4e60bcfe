"""Checkpoints: a text-prompted detector and a memory tracker, found, checked and loaded as two halves of one model.

No published checkpoint holds a LiteText detector together with SAM3's tracker, so ``s0``, ``s1`` and ``l`` take the
detector from one place and the tracker (``tracker_model.*`` and its neck) from another; both were trained on the same
image encoder, which LiteText leaves untouched. Merging is on state dicts, checked tensor by tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, Sam3VideoConfig
from transformers.initialization import no_init_weights
from transformers.models.sam3.modeling_sam3 import Sam3Model, Sam3VisionNeck
from transformers.models.sam3_lite_text.modeling_sam3_lite_text import Sam3LiteTextModel
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel

from configs.schema import ModelConfig
from pipeline.checkpoint_files import DETECTOR, NECK, TRACKER, Shape, Weights, check_fit, scan
from pipeline.checkpoint_hub import HUB_IDS, SAM3_HUB_ID, find_folder
from pipeline.checkpoint_text import COUNTED as COUNTED  # part of this module's interface, as is the next
from pipeline.checkpoint_text import Convention, encode_phrases, text_half
from pipeline.checkpoint_text import text_parameters as text_parameters
from pipeline.errors import ModelError, UsageError
from pipeline.types import Prompts

VISUAL_PHRASE = "visual"
"""What is encoded when there are boxes and no text (transformers ``Sam3Processor``)."""
_DETECTOR_TYPES = ("sam3_lite_text", "sam3")
_VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Configuration keys that say how a checkpoint was saved, not what it computes."""
LICENCE_NOTE = (
    "The SAM3 weights and everything derived from them, LiteText included, are under Meta's SAM License, "
    "which also binds whoever passes them on: https://github.com/facebookresearch/sam3/blob/main/LICENSE"
)


@dataclass(frozen=True, slots=True)
class TrackerParts:
    """What the memory tracker runs on: the image encoder's features enter at ``neck``."""

    neck: Sam3VisionNeck
    model: Sam3TrackerVideoModel
    """Without a vision encoder."""
    config: PretrainedConfig
    """``Sam3TrackerVideoConfig``."""
    image_size: int
    low_res_size: int
    """Side of low-resolution masks in pixels."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One folder of weights and what it holds."""

    folder: Path
    config: PretrainedConfig
    weights: Weights

    @property
    def detector_config(self) -> PretrainedConfig | None:
        if self.config.model_type in _DETECTOR_TYPES:
            return self.config
        return getattr(self.config, "detector_config", None)

    @property
    def tracker_config(self) -> PretrainedConfig | None:
        return (
            self.config
            if self.config.model_type == "sam3_tracker_video"
            else getattr(self.config, "tracker_config", None)
        )


@dataclass(frozen=True)
class Checkpoint:
    """A detector and a tracker that fit together; nothing is in memory until a ``load_`` method is called."""

    name: str
    config: Sam3VideoConfig
    weights: Weights
    folder: Path
    """Where the tokenizer lies."""

    @property
    def image_size(self) -> int:
        """Side of the square model input, pixels."""
        return int(self.config.image_size)

    @property
    def low_res_size(self) -> int:
        """Side of the low-resolution masks, pixels."""
        return int(self.config.low_res_mask_size)

    @cached_property
    def tokenizer(self) -> Any:
        """The text tokenizer (transformers, fast).

        Raises:
            ModelError: the folder has none.
        """
        try:
            return AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise ModelError(
                "no usable tokenizer", str(self.folder), "copy tokenizer.json beside the weights"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of configuration, vocabulary and every tensor: equal for equal models, wherever they lie."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        described = json.dumps([_architecture(self.config.to_dict()), vocabulary], sort_keys=True, default=str)
        return hashlib.sha256(f"{described}\n{self.weights.digest()}".encode()).hexdigest()

    def encode(
        self, phrases: Sequence[str], vetoes: Sequence[str] = (), convention: Convention = "transformers"
    ) -> Prompts:
        """Encode all phrases in one batch on the CPU; the text encoder is loaded alone and dropped again.

        A phrase longer than the context is cut, with a warning that says what was left out.

        Args:
            phrases: what to find.
            vetoes: what must not be found.
            convention: ``transformers``: padded to 32 tokens, pad mask; ``original``: the authors' 16 tokens,
                zero-padded, no pad mask in the text encoder.

        Raises:
            UsageError: no phrase, or an empty one.
        """
        half = text_half(self.config.detector_config, self.weights)
        return encode_phrases(half, self.tokenizer, phrases, vetoes, convention)

    def load_detector(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """The detector (``Sam3LiteTextModel`` or ``Sam3Model``) in evaluation mode, without its text encoder."""
        with no_init_weights():
            model = _detector_class(self.config.detector_config)(self.config.detector_config)
        del model.text_encoder, model.text_projection
        loaded: nn.Module = _load(model, self._without_text(), DETECTOR, device, dtype)
        return loaded

    def load_tracker(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TrackerParts:
        """The tracker's neck and heads in evaluation mode."""
        config = self.config.tracker_config
        with no_init_weights():
            neck = Sam3VisionNeck(config.vision_config)
            model = Sam3TrackerVideoModel(config, remove_vision_encoder=True)
        return TrackerParts(
            neck=_load(neck, self.weights, NECK, device, dtype),
            model=_load(model, self.weights, TRACKER, device, dtype),
            config=config,
            image_size=self.image_size,
            low_res_size=self.low_res_size,
        )

    def _without_text(self) -> Weights:
        text = self.weights.part(f"{DETECTOR}text_").where
        kept = {n: w for n, w in self.weights.where.items() if n not in text}
        return Weights(kept, {n: self.weights.shapes[n] for n in kept})


def open_checkpoint(config: ModelConfig) -> Checkpoint:
    """Find a model by name and check it, tensor by tensor, without loading it.

    ``name`` is ``tiny`` (packaged), ``s0``/``s1``/``l``/``sam3``, a Hub id, or a folder; a detector without a
    tracker is completed from ``tracker_from`` (default ``facebook/sam3``).

    Raises:
        ModelError: something is missing, gated, pickled or does not fit; says what, its licence and the ways out.
    """
    detector = _open_source(config.name, config.revision, "detector")
    if detector.detector_config is None:
        raise ModelError("this checkpoint has no text-prompted detector", config.name, "name a SAM3 or LiteText model")
    if detector.tracker_config is not None and config.tracker_from is None:
        tracker = detector
    else:
        tracker = _open_source(config.tracker_from or SAM3_HUB_ID, None, "tracker")
    if tracker.tracker_config is None:
        raise ModelError("this checkpoint has no memory tracker", str(tracker.folder), "name a SAM3 video model")
    merged = _compose(detector, tracker)
    weights = detector.weights if tracker is detector else _merge(detector.weights, tracker.weights)
    check_fit(weights, expected_shapes(merged), config.name)
    return Checkpoint(config.name, merged, weights, detector.folder)


def prepare(config: ModelConfig, out: Path) -> Checkpoint:
    """Write one local folder with both halves; it needs no Hub and no token any more.

    The folder appears at ``out`` only when it is complete and reloads with the same fingerprint.

    Raises:
        UsageError: ``out`` exists or cannot be written.
        ModelError: as :func:`open_checkpoint`.
    """
    if out.exists():
        raise UsageError("the folder exists", str(out), "name another one, or delete it")
    checkpoint = open_checkpoint(config)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        _write(checkpoint, partial)
        if open_checkpoint(ModelConfig(name=str(partial.absolute()))).fingerprint != checkpoint.fingerprint:
            raise ModelError("the merged checkpoint differs after reloading", str(partial), "check the disk")
        partial.rename(out)
    except OSError as error:
        raise UsageError(
            "cannot write the checkpoint", f"{out}: {error.strerror or error}", "check the path"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_checkpoint(ModelConfig(name=str(out.absolute())))


def expected_shapes(config: Sam3VideoConfig) -> dict[str, Shape]:
    """Canonical name and shape of every tensor a model of this configuration has."""
    with torch.device("meta"), no_init_weights():
        parts: dict[str, nn.Module] = {
            DETECTOR: _detector_class(config.detector_config)(config.detector_config),
            NECK: Sam3VisionNeck(config.tracker_config.vision_config),
            TRACKER: Sam3TrackerVideoModel(config.tracker_config, remove_vision_encoder=True),
        }
    return {prefix + n: tuple(t.shape) for prefix, part in parts.items() for n, t in part.state_dict().items()}


def _open_source(name: str, revision: str | None, half: str) -> _Source:
    folder = find_folder(HUB_IDS.get(name, name), revision, half)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError("no usable config.json", str(folder), "name a SAM3 or SAM3-LiteText checkpoint") from error
    if config.model_type not in (*_DETECTOR_TYPES, "sam3_video", "sam3_tracker_video"):
        raise ModelError(f"not a SAM3 model but {config.model_type!r}", str(folder), "name a SAM3 checkpoint")
    return _Source(folder, config, scan(folder, config.model_type))


def _compose(detector: _Source, tracker: _Source) -> Sam3VideoConfig:
    """The configuration of the merged model; the two halves must see the same picture the same way."""
    if tracker is detector:
        config: Sam3VideoConfig = detector.config
    else:
        halves = {"detector_config": detector.detector_config, "tracker_config": tracker.tracker_config}
        config = Sam3VideoConfig(**{**_video_values(tracker.config), **halves})
    ours, theirs = config.detector_config.vision_config, config.tracker_config.vision_config
    for what in ("image_size", "patch_size", "hidden_size"):
        a, b = (getattr(v.backbone_config, what) for v in (ours, theirs))
        if a != b:
            raise ModelError(
                f"detector and tracker do not fit: {what} {a} and {b}",
                f"{detector.folder} and {tracker.folder}",
                "take both from models of the same image encoder",
            )
    return config


def _video_values(config: PretrainedConfig) -> dict[str, Any]:
    """What a video configuration says beyond its two halves."""
    if config.model_type == "sam3_video":
        return dict(config.to_dict())
    return {"low_res_mask_size": 4 * config.image_size // config.vision_config.backbone_config.patch_size}


def _merge(detector: Weights, tracker: Weights) -> Weights:
    backbone = f"{DETECTOR}vision_encoder.backbone."
    ours, theirs = detector.part(backbone), tracker.part(backbone)
    # The tracker was trained on its own checkpoint's image encoder: another architecture cannot be right.
    if theirs.shapes and ours.shapes != theirs.shapes:
        check_fit(theirs, ours.shapes, "the tracker's image encoder, compared with the detector's")
    return detector.part(DETECTOR) | tracker.part(NECK, TRACKER)


def _detector_class(config: PretrainedConfig) -> type[nn.Module]:
    built: type[nn.Module] = Sam3LiteTextModel if config.model_type == "sam3_lite_text" else Sam3Model
    return built


def _load(model: Any, weights: Weights, prefix: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Fill a module whose weights were not initialised; only buffers it computed itself are kept."""
    model.load_state_dict(weights.read(prefix, dtype, torch.device(device)), strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False)


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir(parents=True)
    checkpoint.config.architectures = ["Sam3VideoModel"]
    checkpoint.config.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    weights = checkpoint.weights
    save_file(dict(weights.tensors(weights.where)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(f"# {checkpoint.name}\n\nWritten by `masklet prepare`. {LICENCE_NOTE}\n")


def _architecture(config: Any) -> Any:
    """A configuration without the keys that only say how it was saved."""
    if isinstance(config, dict):
        return {k: _architecture(v) for k, v in config.items() if k not in _VOLATILE}
    return [_architecture(v) for v in config] if isinstance(config, (list, tuple)) else config
