"""Small random SAM3 models for tests: same code paths as the real ones, a few hundred thousand parameters.

Random weights of transformers' default init (std 0.02) starve 64-wide layers: every query gets the same logit and
the same mask, so that a wrong formula can pass. :func:`randomize` therefore draws fan-in scaled weights and spreads
the queries, so outputs differ between queries, phrases and images, and some scores pass a 0.5 threshold.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Sam3Config,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

PATCH_PX = 14
TEXT_VOCABULARY = 64
WORDS = ("red", "green", "blue", "circle", "square", "cup", "ball", "person", "a", "the", "visual", "car")

Kind = Literal["litetext", "sam3"]


def vision_config(image_size: int = 112, fpn: int = 96, vit: int = 64, layers: int = 2) -> dict[str, Any]:
    """A ViT of ``layers`` layers (the last one global, the others in windows of half the grid) and its neck."""
    grid = image_size // PATCH_PX
    return {
        "model_type": "sam3_vision_model",
        "fpn_hidden_size": fpn,
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
        "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": vit,
            "intermediate_size": 2 * vit,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": PATCH_PX,
            "pretrain_image_size": image_size,
            "window_size": max(grid // 2, 1),
            "global_attn_indexes": [layers - 1],
        },
    }


def _heads(width: int, queries: int) -> dict[str, dict[str, Any]]:
    """The DETR parts both detectors share."""
    shared = {"hidden_size": width, "num_attention_heads": 4}
    layered = {**shared, "intermediate_size": 2 * width, "dropout": 0.0}
    return {
        "geometry_encoder_config": {**layered, "num_layers": 1, "roi_size": 3},
        "detr_encoder_config": {**layered, "num_layers": 1},
        "detr_decoder_config": {**layered, "num_layers": 2, "num_queries": queries},
        "mask_decoder_config": {**shared, "num_upsampling_stages": 2},
    }


def litetext_config(
    image_size: int = 112, width: int = 96, *, repmixer: bool = True, queries: int = 12, positions: int = 16
) -> Sam3LiteTextConfig:
    """A small LiteText detector; ``positions`` is the number of rows of the text position table."""
    text = {
        "vocab_size": TEXT_VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "projection_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "use_repmixer_blocks": repmixer,
        "layer_scale_init_value": 0.1,
        "repmixer_kernel_size": 5,
    }
    return Sam3LiteTextConfig(
        vision_config=vision_config(image_size, width), text_config=text, **_heads(width, queries)
    )


def sam3_config(image_size: int = 112, width: int = 96, *, queries: int = 12) -> Sam3Config:
    """A small SAM3 detector with the CLIP text encoder (32 positions, as the published one)."""
    text = {
        "model_type": "clip_text_model",
        "vocab_size": TEXT_VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "projection_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": 2,
        "eos_token_id": TEXT_VOCABULARY - 1,
        "pad_token_id": 0,
    }
    return Sam3Config(vision_config=vision_config(image_size, width), text_config=text, **_heads(width, queries))


def tracker_config(
    image_size: int = 112, width: int = 96, *, layers: int = 1, **changes: Any
) -> Sam3TrackerVideoConfig:
    """A small memory tracker. ``width`` must exceed 64: transformers hard-wires 64 memory channels."""
    values: dict[str, Any] = {
        "vision_config": vision_config(image_size, width),
        "prompt_encoder_config": {"hidden_size": width, "image_size": image_size, "patch_size": PATCH_PX},
        "mask_decoder_config": {
            "hidden_size": width,
            "mlp_dim": 2 * width,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": width,
        },
        "image_size": image_size,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": layers,
        "memory_attention_feed_forward_hidden_size": 2 * width,
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 2 * width,
    }
    return Sam3TrackerVideoConfig(**{**values, **changes})


def video_config(
    kind: Kind = "litetext", image_size: int = 112, width: int = 96, detector_width: int | None = None, **changes: Any
) -> Sam3VideoConfig:
    """Detector and tracker. ``detector_width`` differs from ``width`` as in the packaged tiny checkpoint.

    Transformers' own ``Sam3VideoModel`` needs them equal (it builds the tracker's neck from the detector's config).
    ``changes`` are fields of ``Sam3VideoConfig`` (thresholds).
    """
    build = litetext_config if kind == "litetext" else sam3_config
    return Sam3VideoConfig(
        detector_config=build(image_size, detector_width or width),
        tracker_config=tracker_config(image_size, width),
        low_res_mask_size=4 * image_size // PATCH_PX,
        **changes,
    )


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Overwrite all weights by seeded fan-in scaled noise, batch-norm statistics included; returns ``model.eval()``."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(model.state_dict().items()):  # what a checkpoint stores; the rest is computed
        if not value.is_floating_point():
            continue
        if name.endswith(("running_var", "norm.weight")) or ("norm" in name and name.endswith("weight")):
            value.copy_(0.75 + 0.5 * torch.rand(value.shape, generator=generator))
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(("query_embed.weight", "reference_points.weight", "token_embedding.weight")):
            value.copy_(noise)
        elif name.endswith("dot_product_scoring.query_proj.weight"):
            value.copy_(12 * noise / math.sqrt(value[0].numel()))
        elif name.endswith("presence_head.layer3.bias"):
            value.fill_(3.0)
        elif value.ndim >= 2:
            value.copy_(noise / math.sqrt(value[0].numel()))
        else:
            value.copy_(0.1 * noise)
    return model.eval()


def detector_model(config: Sam3LiteTextConfig | Sam3Config, seed: int = 0) -> Sam3LiteTextModel | Sam3Model:
    """A random detector of this config."""
    build = Sam3LiteTextModel if isinstance(config, Sam3LiteTextConfig) else Sam3Model
    model: Sam3LiteTextModel | Sam3Model = randomize(build(config), seed)
    return model


def video_model(config: Sam3VideoConfig, seed: int = 0) -> Sam3VideoModel:
    """A random ``Sam3VideoModel`` (detector and tracker of one width)."""
    model: Sam3VideoModel = randomize(Sam3VideoModel(config), seed)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of :data:`WORDS`; the end token has the highest id: the text model pools there."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[BOS]", *WORDS))}
    vocabulary["[EOS]"] = TEXT_VOCABULARY - 1
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(name, vocabulary[name]) for name in ("[BOS]", "[EOS]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=32,
    )


def video_state(config: Sam3VideoConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of detector, neck and tracker by canonical name; their widths may differ."""
    parts: dict[str, nn.Module] = {
        "detector_model.": detector_model(config.detector_config, seed),
        "tracker_neck.": randomize(Sam3VisionNeck(config.tracker_config.vision_config), seed + 1),
        "tracker_model.": randomize(Sam3TrackerVideoModel(config.tracker_config, remove_vision_encoder=True), seed + 2),
    }
    return {prefix + name: t for prefix, part in parts.items() for name, t in part.state_dict().items()}


def write_folder(folder: Path, config: PretrainedConfig, state: dict[str, torch.Tensor]) -> Path:
    """A checkpoint folder as ``masklet prepare`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    save_file({name: t.clone().contiguous() for name, t in state.items()}, folder / "model.safetensors")
    return folder
