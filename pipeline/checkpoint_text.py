"""Phrases to embeddings: the text encoder is read alone, used once, and gone.

Two conventions exist. transformers' ``Sam3Processor`` pads to 32 tokens, masks the padding and stretches a shorter
position table; the authors use 16 tokens (32 for SAM3's own encoder), pad with zeros, do not mask inside the text
encoder and take the table's first rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, PretrainedConfig, Sam3Config, Sam3LiteTextConfig
from transformers.initialization import no_init_weights
from transformers.models.sam3_lite_text.configuration_sam3_lite_text import Sam3LiteTextTextConfig
from transformers.models.sam3_lite_text.modeling_sam3_lite_text import Sam3LiteTextTextModel

from pipeline.checkpoint_files import DETECTOR, Weights
from pipeline.errors import UsageError, empty_phrase
from pipeline.text_folding import fold
from pipeline.types import BoolArray, Prompts

LOGGER = logging.getLogger("masklet.checkpoints")

Convention = Literal["transformers", "original"]

PROCESSOR_TOKENS = 32
"""Length ``Sam3Processor`` pads every phrase to."""
LITETEXT_TOKENS = 16
"""Context of the released LiteText encoders (S0-16, S1-16, L-16)."""

_PUBLISHED: dict[str, dict[str, Any]] = {
    "s0": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "projection_dim": 512},
    "s1": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "projection_dim": 512}
    | {"use_repmixer_blocks": False},
    "l": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 768}
    | {"use_repmixer_blocks": False, "num_attention_heads": 12},
}
"""MobileCLIP text encoders of SAM3-LiteText (arXiv 2602.12173), as transformers' conversion script configures them."""

COUNTED = (
    "token and position tables (16 rows; SAM3: 32), all layers, the CLIP projection the detector never reads, "
    "and text_projection to the detector's width"
)


@dataclass(frozen=True, slots=True)
class TextHalf:
    """A text encoder and its projection to the detector's width."""

    encoder: nn.Module
    projection: nn.Linear
    is_litetext: bool

    @property
    def rows(self) -> int:
        """Rows of the position table."""
        if self.is_litetext:
            return int(self.encoder.get_parameter(_LITETEXT_TABLE).shape[2])
        return int(self.encoder.get_parameter("text_model.embeddings.position_embedding.weight").shape[0])


_LITETEXT_TABLE = "embeddings.position_embedding.position_embedding"


def text_half(config: PretrainedConfig, weights: Weights) -> TextHalf:
    """Read the text encoder of a detector, float32 on the CPU: results then do not depend on the device."""
    with no_init_weights():
        half = _build(config)
    half.encoder.load_state_dict(weights.read(f"{DETECTOR}text_encoder.", torch.float32), strict=True, assign=True)
    half.projection.load_state_dict(weights.read(f"{DETECTOR}text_projection.", torch.float32), assign=True)
    half.encoder.eval()
    fold(half.encoder)
    return half


def _build(config: PretrainedConfig) -> TextHalf:
    text, width = config.text_config, config.detr_encoder_config.hidden_size
    litetext = config.model_type == "sam3_lite_text"
    encoder = Sam3LiteTextTextModel(text) if litetext else CLIPTextModelWithProjection(text)
    return TextHalf(encoder, nn.Linear(text.hidden_size, width), litetext)


def text_parameters(name: str) -> int:
    """Parameters of a model's text encoder, counted on the meta device (no weights are read); see :data:`COUNTED`.

    Args:
        name: ``s0``, ``s1``, ``l`` or ``sam3``, from their published configurations.

    Raises:
        UsageError: another name.
    """
    if name in _PUBLISHED:
        published = Sam3LiteTextTextConfig(max_position_embeddings=LITETEXT_TOKENS, **_PUBLISHED[name])
        config: PretrainedConfig = Sam3LiteTextConfig(text_config=published)
    elif name == "sam3":
        config = Sam3Config()
    else:
        raise UsageError(f"no published text encoder {name!r}", "", f"choose one of: {', '.join(_PUBLISHED)}, sam3")
    with torch.device("meta"), no_init_weights():
        half = _build(config)
    return sum(p.numel() for part in (half.encoder, half.projection) for p in part.parameters())


@torch.no_grad()
def encode_phrases(
    half: TextHalf, tokenizer: Any, phrases: Sequence[str], vetoes: Sequence[str], convention: Convention
) -> Prompts:
    """Token embeddings of all phrases, vetoes last, in one batch.

    Raises:
        UsageError: no phrase, or one without any token.
    """
    texts = [*phrases, *vetoes]
    if not phrases:
        raise UsageError("nothing to look for", "", "give at least one phrase")
    for text in texts:
        if not text.strip():
            raise empty_phrase(text)
    length = _context(half, convention)
    ids, mask = _tokenize(tokenizer, texts, length, pad_with_zero=convention == "original")
    if convention == "original":
        hidden = _sliced(half, length).encoder(input_ids=ids, attention_mask=None).last_hidden_state
    else:
        hidden = half.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return Prompts(tuple(texts), half.projection(hidden).numpy(), _bool(mask), num_vetoes=len(vetoes))


def _context(half: TextHalf, convention: Convention) -> int:
    if convention == "transformers":
        # SAM3's own table cannot be stretched; LiteText's is, to whatever length comes.
        return PROCESSOR_TOKENS if half.is_litetext else min(PROCESSOR_TOKENS, half.rows)
    return min(LITETEXT_TOKENS if half.is_litetext else PROCESSOR_TOKENS, half.rows)


def _sliced(half: TextHalf, length: int) -> TextHalf:
    """The encoder with the first ``length`` rows of its table, so that transformers has nothing to stretch."""
    if half.is_litetext:
        table = half.encoder.get_submodule("embeddings.position_embedding")
        rows = half.encoder.get_parameter(_LITETEXT_TABLE)[:, :, :length]
        table.register_parameter("position_embedding", nn.Parameter(rows, requires_grad=False))
    return half


def _tokenize(tokenizer: Any, texts: Sequence[str], length: int, *, pad_with_zero: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask ``(P, length)``; the end token survives cutting.

    Raises:
        UsageError: a phrase of which the tokenizer keeps nothing.
    """
    tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    special = int(tokenizer.num_special_tokens_to_add())
    for text, kept in zip(texts, tokens.attention_mask.sum(1).tolist(), strict=True):
        if kept <= special:
            raise UsageError("a phrase has no words", repr(text), "say what to look for")
        _warn_of_loss(tokenizer, text, length, special)
    if not pad_with_zero:
        return tokens.input_ids, tokens.attention_mask
    ids = tokens.input_ids * tokens.attention_mask
    return ids, (ids != 0).long()  # the authors' mask: a token that is 0 counts as padding too


def _warn_of_loss(tokenizer: Any, text: str, length: int, special: int) -> None:
    """What of a phrase does not reach the encoder: its end, or words that a tokenizer of whole words does not have."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans, kept = found["offset_mapping"], length - special
    if len(spans) > kept:
        LOGGER.warning(
            "phrase %r is longer than %d tokens: %r is cut off", text, length, text[spans[kept - 1][1] :].strip()
        )
    if tokenizer.unk_token_id in (None, tokenizer.eos_token_id):  # SAM3's spells everything, as CLIP's
        return
    pairs = zip(found["input_ids"], spans, strict=True)
    unknown = [text[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id]
    if unknown:
        words = ", ".join(map(repr, unknown))
        LOGGER.warning("phrase %r: this model does not know %s; --model s0 does", text, words)


def _bool(mask: Tensor) -> BoolArray:
    return np.asarray(mask.bool().numpy())
