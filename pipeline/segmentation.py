"""Images instead of video: every instance of every phrase, or of what boxes show, on one image or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from configs.schema import DetectorConfig, DeviceConfig, ModelConfig
from pipeline.checkpoints import VISUAL_PHRASE, Checkpoint, open_checkpoint
from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
from pipeline.errors import SourceError, UsageError
from pipeline.types import BoolArray, BoxPrompt, Detections, Float32Array, Frame, Prompts, UInt8Array
from workers.devices import prepare_device

ImageLike: TypeAlias = str | Path | Image.Image | UInt8Array
Boxes: TypeAlias = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What was found on one image, best score first; row i is one object."""

    xyxy: Float32Array
    """``(N, 4)`` the detector's boxes, pixels."""
    score: Float32Array
    """``(N,)`` 0..1."""
    masks: BoolArray
    """``(N, H, W)`` at the image's own size."""
    prompt: tuple[str, ...]
    """N phrases: which one found it (``visual`` where only boxes were given)."""

    def __len__(self) -> int:
        return len(self.score)


def segment(
    images: ImageLike | Sequence[ImageLike],
    *,
    text: str | Sequence[str] | Sequence[Sequence[str] | None] | None = None,
    boxes: Boxes | Sequence[Boxes | None] | None = None,
    box_labels: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
    model: str | Path = "tiny",
    device: str = "auto",
    conf: float = 0.5,
) -> list[ImageResult]:
    """Segment one image or a batch.

    The model of the last call stays loaded, so that a loop over images does not load it anew.

    Args:
        images: a path, a PIL image, an RGB uint8 array ``(H, W, 3)``, or a list of these.
        text: a phrase, or several that are all looked for on every image; a list of lists gives every image its own.
        boxes: exemplars as in transformers' ``Sam3Processor``: per image a list of ``[x1, y1, x2, y2]``
            in pixels, or ``None`` for an image without; the outer list may be left out for one image.
        box_labels: 1 like this (default), 0 not like this; nested like ``boxes``.
        model: as ``--model``.
        device: as ``--device``.
        conf: detections below are dropped.

    Returns:
        One result per image, also for a single one.

    Raises:
        UsageError: neither text nor boxes, or lists of another length than the images.
        SourceError: an image cannot be read.
        ModelError, DeviceError: the model cannot be had, or not on this device.
    """
    batch = list(images) if isinstance(images, (list, tuple)) else [images]
    phrases = _per_image_text(text, len(batch))
    exemplars = _per_image_boxes(boxes, box_labels, len(batch), single=not isinstance(images, (list, tuple)))
    frames = [_frame(image, i) for i, image in enumerate(batch)]
    checkpoint, detector = _open(str(model), device, conf)
    encoded = _encode(checkpoint, phrases, exemplars)
    if not any(exemplars) and len(set(phrases)) <= 1:
        found = detector.detect(frames, encoded[0]) if frames else []
        return [_result(f, d, encoded[0]) for f, d in zip(frames, found, strict=True)]
    return [_segment_one(detector, f, p, b) for f, p, b in zip(frames, encoded, exemplars, strict=True)]


@lru_cache(maxsize=1)
def _open(model: str, device: str, conf: float) -> tuple[Checkpoint, Sam3LiteTextDetector]:
    place, dtype = prepare_device(DeviceConfig(name=device))
    checkpoint = open_checkpoint(ModelConfig(name=model))
    return checkpoint, Sam3LiteTextDetector(checkpoint, DetectorConfig(score_threshold=conf), place, dtype)


def _segment_one(
    detector: Sam3LiteTextDetector, frame: Frame, prompts: Prompts, boxes: Sequence[BoxPrompt]
) -> ImageResult:
    if boxes:
        prompts = detector.encode_boxes(frame, boxes, prompts)
    return _result(frame, detector.detect([frame], prompts)[0], prompts)


def _per_image_text(
    text: str | Sequence[str] | Sequence[Sequence[str] | None] | None, num: int
) -> list[tuple[str, ...]]:
    """Phrases of each image."""
    if text is None or isinstance(text, str):
        return [() if text is None else (text,)] * num
    if all(isinstance(t, str) for t in text):
        return [tuple(str(t) for t in text)] * num
    if len(text) != num:
        raise UsageError(f"{len(text)} lists of phrases for {num} images", "text", "give one list per image")
    return [(t,) if isinstance(t, str) else tuple(t or ()) for t in text]


def _per_image_boxes(
    boxes: Boxes | Sequence[Boxes | None] | None,
    labels: Sequence[int] | Sequence[Sequence[int] | None] | None,
    num: int,
    *,
    single: bool,
) -> list[list[BoxPrompt]]:
    """Exemplars of each image; ``frame`` is the image's number."""
    if boxes is None:
        return [[] for _ in range(num)]
    nested = [boxes] if single and _depth(boxes) == 2 else list(boxes)
    signs = [labels] if single and labels is not None and _depth(labels) == 1 else labels
    per_image = [None] * num if signs is None else list(signs)
    if not len(nested) == len(per_image) == num:
        raise UsageError(
            f"boxes or labels of {len(nested)} images for {num} images", "boxes", "give one list per image"
        )
    return [_exemplars(i, b, s) for i, (b, s) in enumerate(zip(nested, per_image, strict=True))]


def _exemplars(number: int, boxes: object, labels: object) -> list[BoxPrompt]:
    corners = np.asarray([] if boxes is None else boxes, np.float64).reshape(-1, 4)
    signs = np.ones(len(corners)) if labels is None else np.asarray(labels).reshape(-1)
    if len(signs) != len(corners):
        raise UsageError(f"{len(signs)} labels for {len(corners)} boxes", f"image {number}", "give one label per box")
    return [
        BoxPrompt(number, (x1, y1, x2, y2), bool(s))
        for (x1, y1, x2, y2), s in zip(corners.tolist(), signs, strict=True)
    ]


def _depth(nested: object) -> int:
    """Levels of nesting, by the first element that is not ``None``."""
    if isinstance(nested, np.ndarray):
        return nested.ndim
    if not isinstance(nested, Sequence):
        return 0
    return 1 + next((_depth(e) for e in nested if e is not None), 0)


def _encode(
    checkpoint: Checkpoint, phrases: Sequence[tuple[str, ...]], exemplars: Sequence[Sequence[BoxPrompt]]
) -> list[Prompts]:
    """Prompts of each image; all phrases go through the text encoder in one batch."""
    per_image = [p or ((VISUAL_PHRASE,) if b else ()) for p, b in zip(phrases, exemplars, strict=True)]
    if not all(per_image):
        raise UsageError("nothing to look for", "", "give text, or boxes for every image without text")
    unique = list(dict.fromkeys(p for ps in per_image for p in ps))
    if not unique:
        return []
    encoded = checkpoint.encode(unique)
    rows = [[unique.index(p) for p in ps] for ps in per_image]
    return [Prompts(tuple(ps), encoded.embeddings[r], encoded.mask[r]) for ps, r in zip(per_image, rows, strict=True)]


def _frame(image: ImageLike, number: int) -> Frame:
    pixels = _pixels(image, number)
    return Frame("image", number, 0.0, pixels, (pixels.shape[0], pixels.shape[1]))


def _pixels(image: ImageLike, number: int) -> UInt8Array:
    """Upright RGB ``(H, W, 3)``."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}"
            raise UsageError("an image array must be uint8 (H, W, 3) in RGB", f"image {number}: {got}", "convert it")
        return np.ascontiguousarray(image)
    if isinstance(image, (str, Path)):
        try:
            with Image.open(image) as file:
                return _from_pil(file)
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise SourceError(
                "this image cannot be read", f"{image}: {error}", "check the path and the file"
            ) from error
    return _from_pil(image)


def _from_pil(image: Image.Image) -> UInt8Array:
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _result(frame: Frame, found: Detections, prompts: Prompts) -> ImageResult:
    names = tuple(prompts.phrases[i] for i in found.prompt_id)
    return ImageResult(found.xyxy, found.score, _full_size(found.mask_logits, frame.source_size), names)


def _full_size(logits: Float32Array, size: tuple[int, int]) -> BoolArray:
    """Masks at ``size``: probabilities resized, then halved, as ``Sam3ImageProcessor`` post-processes."""
    masks: NDArray[np.bool_] = np.zeros((len(logits), *size), bool)
    for row, low in enumerate(
        torch.from_numpy(logits)
    ):  # one at a time: 100 masks of a 12 Mpx image are 5 GB as floats
        scaled = F.interpolate(low.sigmoid()[None, None], size=size, mode="bilinear", align_corners=False)
        masks[row] = (scaled[0, 0] > 0.5).numpy()
    return masks
