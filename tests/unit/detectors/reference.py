"""Detectors on random weights, beside transformers' own model and processor on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import Sam3Config, Sam3ImageProcessor, Sam3LiteTextConfig, Sam3Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from configs.schema import DetectorConfig
from pipeline.checkpoint_text import TextHalf, encode_phrases
from pipeline.checkpoints import Checkpoint
from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
from pipeline.types import Float32Array, Frame, Prompts
from tests import tinyconf

PLAIN = {"nms_iou": 1.0, "fill_hole_area_px": 0}
"""Detector values that switch off what transformers' image model does not do."""


@dataclass(frozen=True)
class Loaded:
    """What the detector needs of a checkpoint, around a model that is already in memory."""

    model: Any
    image_size: int

    def load_detector(self, device: object, dtype: torch.dtype) -> Any:
        return self.model.to(dtype)


class Reference:
    """transformers' model and processor."""

    def __init__(self, config: Sam3LiteTextConfig | Sam3Config, seed: int) -> None:
        self.model: Any = tinyconf.detector_model(config, seed)
        with torch.no_grad():  # keeps scores of random models away from the clamp, where all are equal
            self.model.dot_product_scoring.query_proj.weight.mul_(0.3)
        self.image_size = int(config.image_size)
        self._tokenizer = tinyconf.tokenizer()
        size = {"height": self.image_size, "width": self.image_size}
        self.processor = Sam3Processor(Sam3ImageProcessor(size=size), self._tokenizer)

    def detector(self, dtype: torch.dtype = torch.float32, num_streams: int = 1, **values: Any) -> Sam3LiteTextDetector:
        """Our detector on the same weights (in place: another ``dtype`` changes the reference too)."""
        checkpoint = cast(Checkpoint, Loaded(self.model, self.image_size))
        return Sam3LiteTextDetector(checkpoint, DetectorConfig(**values), dtype=dtype, num_streams=num_streams)

    def prompts(self, phrases: list[str], vetoes: list[str] | None = None) -> Prompts:
        is_litetext = self.model.config.model_type == "sam3_lite_text"
        half = TextHalf(self.model.text_encoder, self.model.text_projection, is_litetext)
        return encode_phrases(half, self._tokenizer, phrases, vetoes or [], "transformers")

    @torch.no_grad()
    def __call__(
        self, frame: Frame, phrase: str, boxes: list[list[float]] | None = None, labels: list[int] | None = None
    ) -> Any:
        """The model's raw output for one image and phrase."""
        given: dict[str, Any] = {} if boxes is None else {"input_boxes": [boxes], "input_boxes_labels": [labels]}
        inputs = self.processor(images=frame.image, text=phrase, return_tensors="pt", **given)
        inputs.pop("original_sizes")
        return self.model(**inputs)

    @torch.no_grad()
    def with_tokens(self, frame: Frame, tokens: Float32Array, mask: np.ndarray) -> Any:
        """The model's raw output for one image and prompt tokens ``(L, C)``."""
        pixels = self.processor.image_processor(images=frame.image, return_tensors="pt").pixel_values
        text = BaseModelOutputWithPooling(pooler_output=torch.from_numpy(tokens)[None])
        return self.model(pixel_values=pixels, text_embeds=text, attention_mask=torch.from_numpy(mask)[None])


def scores(output: Any) -> Tensor:
    """``(Q,)`` probabilities."""
    score: Tensor = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    return score


def frames(seed: int, n: int, size: tuple[int, int] = (90, 160), stream_id: str = "clip") -> list[Frame]:
    """Frames of coloured rectangles on noise."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(n):
        image = rng.integers(0, 90, (*size, 3), dtype=np.uint8)
        for _ in range(3):
            y, x = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
            image[y : y + rng.integers(10, 40), x : x + rng.integers(10, 50)] = rng.integers(60, 255, 3)
        out.append(Frame(stream_id, index, index / 25, image, size))
    return out
