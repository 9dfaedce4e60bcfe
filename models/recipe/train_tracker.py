"""Train the memory tracker on clips, with the detector's image encoder frozen.

Transformers' own video path handles one clip at a time, so `unroll` re-assembles the model's parts for a batch of
tracks; `FusedNeck` trains the linear part of the neck as one small convolution and is written back exactly.
    python -m models.recipe.train_tracker --encoder detector.pt --minutes 25 --out tracker.pt
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel

from models.recipe import scenes
from models.recipe.losses import dice
from models.recipe.net import Shape, build_detector, fan_in_init, to_pixels, tracker_config
from models.recipe.train_detector import schedule

Features = list[Tensor]  # one frame's levels: [B,16,4g,4g], [B,32,2g,2g], [B,C,g,g]


def build_tracker(shape: Shape) -> Sam3TrackerVideoModel:
    """A fresh tracker without a vision encoder; embeddings that transformers zeroes start small instead."""
    model = Sam3TrackerVideoModel(tracker_config(shape), remove_vision_encoder=True)
    fan_in_init(model)
    with torch.no_grad():
        for block in model.memory_encoder.memory_fuser.layers:
            block.scale.fill_(0.1)
        for p in (model.memory_temporal_positional_encoding, model.no_object_pointer, model.occlusion_spatial_embedding_parameter):
            p.normal_(std=0.1)
        model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
    return model


class FusedNeck(nn.Module):
    """`Sam3FPNLayer`'s 1x1 and 3x3 (and the decoder's conv_s0/s1) have no non-linearity between them: one 3x3 per level."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        v, c = shape.vit, shape.tracker
        self.up0 = nn.Sequential(nn.ConvTranspose2d(v, v // 2, 2, 2), nn.GELU(), nn.ConvTranspose2d(v // 2, v // 4, 2, 2))
        self.up1 = nn.ConvTranspose2d(v, v // 2, 2, 2)
        self.c0 = nn.Conv2d(v // 4, c // 8, 3, padding=1)
        self.c1 = nn.Conv2d(v // 2, c // 4, 3, padding=1)
        self.c2 = nn.Conv2d(v, c, 3, padding=1)

    def forward(self, x: Tensor) -> Features:
        """Image tokens as a map [B,V,g,g] -> the three levels the mask decoder takes."""
        return [self.c0(self.up0(x)), self.c1(self.up1(x)), self.c2(x)]

    @torch.no_grad()
    def export(self, neck: Sam3VisionNeck, tracker: Sam3TrackerVideoModel) -> None:
        """Write the same function into transformers' neck and the decoder's level projections."""
        layers = neck.fpn_layers
        for theirs, mine in ((layers[0].scale_layers[0], self.up0[0]), (layers[0].scale_layers[2], self.up0[2]), (layers[1].scale_layers[0], self.up1)):
            theirs.load_state_dict(mine.state_dict())
        decoder = tracker.mask_decoder
        for layer, conv, project in ((layers[0], self.c0, decoder.conv_s0), (layers[1], self.c1, decoder.conv_s1), (layers[2], self.c2, None)):
            out, inside = conv.weight.shape[:2]
            for p in (layer.proj1, layer.proj2):
                p.weight.zero_()
                p.bias.zero_()
            layer.proj1.weight[:, :, 0, 0] = torch.eye(layer.proj1.weight.shape[0], inside)
            layer.proj2.weight[:out, :inside] = conv.weight
            layer.proj2.bias[:out] = conv.bias
            if project is not None:
                project.weight[:, :, 0, 0] = torch.eye(out, project.weight.shape[1])
                project.bias.zero_()
        for p in layers[3].parameters():
            p.zero_()


@torch.no_grad()
def unfuse(neck: Sam3VisionNeck, tracker: Sam3TrackerVideoModel, shape: Shape) -> FusedNeck:
    """The `FusedNeck` that `export` wrote into a neck, to continue training from a folder."""
    fused, layers = FusedNeck(shape), neck.fpn_layers
    for theirs, mine in ((layers[0].scale_layers[0], fused.up0[0]), (layers[0].scale_layers[2], fused.up0[2]), (layers[1].scale_layers[0], fused.up1)):
        mine.load_state_dict(theirs.state_dict())
    for layer, conv in zip(layers, (fused.c0, fused.c1, fused.c2), strict=False):
        out, inside = conv.weight.shape[:2]
        conv.weight.copy_(layer.proj2.weight[:out, :inside])
        conv.bias.copy_(layer.proj2.bias[:out])
    return fused
