"""The one resize of the decode worker. Imports torch, so nothing imports it before a frame has to be resized."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from pipeline.types import UInt8Array

torch.set_num_threads(1)  # one core per decode process; its neighbours want theirs
_BILINEAR = tv.InterpolationMode.BILINEAR


def resize_bilinear(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Antialiased bilinear resize of ``(H, W, 3)`` uint8 to ``size`` ``(h, w)``, bit-equal to the SAM3 processor's."""
    chw = torch.from_numpy(image).permute(2, 0, 1)
    scaled = tv.resize(chw, list(size), interpolation=_BILINEAR, antialias=True)
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())
