"""The tiny model: configuration, a start from scratch that trains, tokenizer, and a forward that shares one image.

The folder layout is the one of every SAM3 video checkpoint: `config.json` is a `Sam3VideoConfig`; the weights are
`detector_model.*` (`Sam3LiteTextModel`), `tracker_neck.*` (`Sam3VisionNeck` of the tracker's own width) and
`tracker_model.*` (`Sam3TrackerVideoModel` without a vision encoder). One image encoder serves both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
)
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck
from transformers.models.sam3_lite_text.modeling_sam3_lite_text import inverse_sigmoid
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel

from models.recipe.vocabulary import N_COLOURS, N_SHAPES, word_table, words

TEXT_LENGTH = 32  # Sam3Processor always pads text to 32 tokens
_POSITIONS = "vision_encoder.backbone.embeddings.position_embeddings"
SPECIAL = ("[PAD]", "[UNK]", "[BOS]")


@dataclass(frozen=True)
class Shape:
    """Sizes of the tiny model. `tracker` is a multiple of 64 above 64: transformers hardcodes 64 memory channels."""

    image: int = 224
    patch: int = 14
    vit: int = 128
    vit_layers: int = 4
    detector: int = 48
    text: int = 64
    queries_side: int = 4
    tracker: int = 128
    memories: int = 4
    pointers: int = 4

    @property
    def grid(self) -> int:
        """Image tokens per side."""
        return self.image // self.patch


def vision_config(shape: Shape, width: int) -> dict[str, Any]:
    """A `Sam3VisionConfig` of FPN width `width`; all layers attend globally."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": shape.vit,
        "intermediate_size": 2 * shape.vit,
        "num_hidden_layers": shape.vit_layers,
        "num_attention_heads": 4,
        "image_size": shape.image,
        "patch_size": shape.patch,
        "pretrain_image_size": shape.image,
        "window_size": shape.grid,
        "global_attn_indexes": list(range(shape.vit_layers)),
    }
    return {
        "model_type": "sam3_vision_model",
        "fpn_hidden_size": width,
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
        "backbone_feature_sizes": [[k * shape.grid] * 2 for k in (4, 2, 1)],
        "backbone_config": backbone,
    }


def detector_config(shape: Shape, vocabulary: int) -> Sam3LiteTextConfig:
    """The detector's configuration; dropout off, since every training picture is new."""
    d = shape.detector
    detr = {"hidden_size": d, "num_attention_heads": 4, "intermediate_size": 4 * d, "dropout": 0.0}
    return Sam3LiteTextConfig(
        vision_config=vision_config(shape, d),
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": shape.text,
            "intermediate_size": 2 * shape.text,
            "projection_dim": shape.text,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "layer_scale_init_value": 0.1,
            "repmixer_kernel_size": 3,
        },
        geometry_encoder_config={
            "hidden_size": d,
            "num_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 2 * d,
            "dropout": 0.0,
            "roi_size": 3,
        },
        detr_encoder_config=dict(**detr, num_layers=2),
        detr_decoder_config=dict(**detr, num_layers=3, num_queries=shape.queries_side**2),
        mask_decoder_config={"hidden_size": d, "num_upsampling_stages": 2, "num_attention_heads": 4},
    )


def tracker_config(shape: Shape) -> Sam3TrackerVideoConfig:
    """The memory tracker's configuration; image_size must be given at the top or everything is reset to 1008."""
    c = shape.tracker
    return Sam3TrackerVideoConfig(
        vision_config=vision_config(shape, c),
        image_size=shape.image,
        prompt_encoder_config={
            "hidden_size": c,
            "image_size": shape.image,
            "patch_size": shape.patch,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": c,
            "mlp_dim": 2 * c,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 64,
            "iou_head_depth": 2,
            "dynamic_multimask_via_stability": False,
        },
        num_maskmem=shape.memories,
        max_object_pointers_in_encoder=shape.pointers,
        multimask_output_for_tracking=False,
        multimask_output_in_sam=False,
        memory_attention_hidden_size=c,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=2 * c,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_attention_rope_feat_sizes=[shape.grid, shape.grid],
        memory_encoder_hidden_size=c,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=c,
        memory_fuser_embed_dim=c,
        memory_fuser_intermediate_dim=2 * c,
        memory_fuser_num_layers=1,
        memory_fuser_layer_scale_init_value=0.1,
    )


def video_config(shape: Shape, vocabulary: int) -> Sam3VideoConfig:
    """The composite that `models/tiny/config.json` holds."""
    return Sam3VideoConfig(
        detector_config=detector_config(shape, vocabulary).to_dict(),
        tracker_config=tracker_config(shape).to_dict(),
        low_res_mask_size=4 * shape.grid,
        fill_hole_area=0,  # SAM3's 16 pixels of a 288x288 mask are less than half a pixel here
    )


# ------------------------------------------------------------------------------------------------ text
def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-casing word tokenizer; other words are [UNK]. [EOS] has the highest id: the text tower pools at argmax."""
    vocabulary = {w: i for i, w in enumerate((*SPECIAL, *words(), "[EOS]"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(t, vocabulary[t]) for t in ("[BOS]", "[EOS]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=TEXT_LENGTH,
    )


class Phrases:
    """Phrases -> token ids [P,32] and attention mask [P,32], remembering what it has seen."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self._ids: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of each phrase, padded and cut to 32 tokens."""
        for text in texts:
            if text not in self._ids:
                self._ids[text] = self.tokenizer(
                    text, padding="max_length", max_length=TEXT_LENGTH, truncation=True
                ).input_ids
        ids = torch.tensor([self._ids[t] for t in texts])
        return ids, (ids != 0).long()


# ------------------------------------------------------------------------------------------------ start
def fan_in_init(model: nn.Module) -> None:
    """Transformers' normal(0, 0.02) starves layers of 48-128 channels: scale by fan-in instead."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)


@torch.no_grad()
def _init_box_bias(decoder: Any, slope: float = 6.0) -> None:
    """Start the box relative-position bias as -slope x (distance outside the box), so each query pools its own box.

    Its MLP sees (coordinate - near edge, coordinate - far edge): two ReLU units express this exactly.
    """
    for mlp in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        mlp.layer1.weight[0] = torch.tensor([-1.0, 0.0])
        mlp.layer1.weight[1] = torch.tensor([0.0, 1.0])
        mlp.layer1.bias[:2] = 0
        mlp.layer2.weight.mul_(0.2)
        mlp.layer2.weight[:, :2] = -slope


def build_detector(shape: Shape) -> Sam3LiteTextModel:
    """A fresh detector: fan-in weights, an anchor grid of queries, identity box refinement."""
    model = Sam3LiteTextModel(detector_config(shape, len(SPECIAL) + len(words()) + 1))
    fan_in_init(model)
    decoder, side = model.detr_decoder, shape.queries_side
    centre = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    extent = torch.full((side**2,), 0.28)
    with torch.no_grad():
        decoder.reference_points.weight.copy_(torch.logit(torch.stack([x.flatten(), y.flatten(), extent, extent], 1)))
        decoder.box_head.layer3.weight.zero_()
        model.vision_encoder.backbone.embeddings.position_embeddings.normal_(std=0.1)
        _init_box_bias(decoder)
    return model


def resampled(state: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """A detector's weights with the image encoder's position table brought to `grid` x `grid` tokens."""
    table = state[_POSITIONS]
    side = round(table.shape[1] ** 0.5)
    if side == grid:
        return state
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grown = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return state | {_POSITIONS: grown.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)}


@torch.no_grad()
def warm_start(model: Sam3LiteTextModel, folder: Path) -> None:
    """Take over an older folder, of a detector or of a whole model: resample its position table, map its words, keep
    everything else that still has the same shape.

    New words start as a copy of the known word they stand for (`vocabulary.word_table`), slightly perturbed.
    """
    stored = load_file(folder / "model.safetensors")
    old = {k.removeprefix("detector_model."): v.float() for k, v in stored.items()}
    own = model.state_dict()
    old = resampled(old, round(own[_POSITIONS].shape[1] ** 0.5))
    key = next(k for k in old if k.endswith("token_embedding.weight"))
    ids_old = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    rows = own[key].clone()
    for word, index in build_tokenizer().get_vocab().items():
        known = word if word in ids_old else word_table().get(word, "[UNK]")
        if known in ids_old:
            rows[index] = old[key][ids_old[known]] + (0.02 * torch.randn(rows.shape[1]) if known != word else 0)
    old[key] = rows
    model.load_state_dict({k: v for k, v in old.items() if k in own and v.shape == own[k].shape}, strict=False)


def training_mode(model: nn.Module) -> None:
    """Train mode with the text tower's BatchNorm frozen at identity, so that padding never shifts its statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class TokenHeads(nn.Module):
    """Training-only readout of the image tokens: area share of each colour and shape, and the covering thing's box."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.names = nn.Linear(shape.vit, N_COLOURS + N_SHAPES)
        self.box = nn.Linear(shape.vit, 4)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B,N,C] -> name logits [B,N,colours+shapes] and 4 x left/top/right/bottom distances [B,N,4]."""
        normal = F.layer_norm(tokens, tokens.shape[-1:])
        return self.names(normal), self.box(normal)


# ------------------------------------------------------------------------------------------------ forward
@dataclass
class Found:
    """What the detector says: boxes [L,P,Q,4] cxcywh 0-1, logits [L,P,Q], presence [L,P]; masks of `masked` prompts."""

    boxes: Tensor
    logits: Tensor
    presence: Tensor
    masks: Tensor | None = None
    semantic: Tensor | None = None


def encode_exemplars(
    model: Sam3LiteTextModel, fpn: list[Tensor], pos: list[Tensor], boxes: Tensor, owner: Tensor
) -> tuple[Tensor, Tensor]:
    """Box prompts [E,4] cxcywh on images `owner` [E] -> prompt tokens [E,2,d] and mask [E,2]."""
    ones = torch.ones(len(boxes), 1, dtype=torch.long)
    out = model.geometry_encoder(
        box_embeddings=boxes[:, None],
        box_mask=ones.bool(),
        box_labels=ones,
        img_feats=[fpn[-1][owner]],
        img_pos_embeds=[pos[-1][:1].expand(len(boxes), -1, -1, -1)],
    )
    return out.last_hidden_state, out.attention_mask


def detect(
    model: Sam3LiteTextModel,
    vision: Any,
    owner: Tensor,
    ids: Tensor,
    attention: Tensor,
    masked: Tensor | None = None,
    exemplars: tuple[Tensor, Tensor] | None = None,
) -> Found:
    """`Sam3LiteTextModel.forward` with every layer's output and image features shared by several prompts.

    vision: vision encoder output of B images; owner [P]: image of each prompt; ids, attention [P,32];
    masked: prompts that go through the mask decoder (None: all); exemplars: (prompt indices [E], boxes [E,4] cxcywh).
    """
    fpn, pos = list(vision.fpn_hidden_states[:3]), list(vision.fpn_position_encoding[:3])
    unique, inverse = torch.unique(ids, dim=0, return_inverse=True)
    text = model.get_text_features(unique, (unique != 0).long(), return_dict=True).pooler_output[inverse]
    mask = attention.bool()
    if exemplars is not None and len(exemplars[0]):
        tokens, valid = encode_exemplars(model, fpn, pos, exemplars[1], owner[exemplars[0]])
        text = torch.cat([text, text.new_zeros(len(text), 2, text.shape[-1]).index_copy(0, exemplars[0], tokens)], 1)
        mask = torch.cat([mask, mask.new_zeros(len(text), 2).index_copy(0, exemplars[0], valid.bool())], 1)
    here = pos[2][:1].expand(len(owner), -1, -1, -1)
    encoded = model.detr_encoder(
        vision_features=[fpn[2][owner]], text_features=text, vision_pos_embeds=[here], text_mask=mask
    )
    decoded = model.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=text,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=mask,
        spatial_shapes=encoded.spatial_shapes,
    )
    hidden = decoded.intermediate_hidden_states
    found = Found(
        boxes=(inverse_sigmoid(decoded.reference_boxes) + model.detr_decoder.box_head(hidden)).sigmoid(),
        logits=model.dot_product_scoring(hidden, text, mask).squeeze(-1),
        presence=decoded.presence_logits.squeeze(-1),
    )
    chosen = torch.arange(len(owner)) if masked is None else masked
    if len(chosen):
        drawn = model.mask_decoder(
            decoder_queries=hidden[-1][chosen],
            backbone_features=[f[owner[chosen]] for f in fpn],
            encoder_hidden_states=encoded.last_hidden_state[chosen],
            prompt_features=text[chosen],
            prompt_mask=mask[chosen],
        )
        found.masks, found.semantic = drawn.pred_masks, drawn.semantic_seg.squeeze(1)
    return found


def to_pixels(images: Any) -> Tensor:
    """uint8 RGB [B,S,S,3] -> normalised [B,3,S,S] (mean and std 0.5)."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


# ------------------------------------------------------------------------------------------------ folder
@dataclass
class Tiny:
    """A loaded folder: detector, tracker neck and tracker."""

    config: Sam3VideoConfig
    detector: Sam3LiteTextModel
    neck: Sam3VisionNeck
    tracker: Sam3TrackerVideoModel


def load(folder: Path) -> Tiny:
    """Rebuild all three parts of a model folder in float32, in eval mode; every weight must fit exactly."""
    config = Sam3VideoConfig.from_pretrained(folder)
    parts = (
        Sam3LiteTextModel(config.detector_config),
        Sam3VisionNeck(config.tracker_config.vision_config),
        Sam3TrackerVideoModel(config.tracker_config, remove_vision_encoder=True),
    )
    weights = load_file(Path(folder) / "model.safetensors")
    for name, part in zip(("detector_model.", "tracker_neck.", "tracker_model."), parts, strict=True):
        own = {k.removeprefix(name): v.float() for k, v in weights.items() if k.startswith(name)}
        part.load_state_dict(own, strict=True)
        part.eval()
    return Tiny(config, *parts)
