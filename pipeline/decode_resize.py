"""The one resize of the decode worker. Imports torch, so nothing imports it before a frame has to be resized."""

from __future__ import annotations

import platform

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.types import UInt8Array

torch.set_num_threads(1)  # one core per decode process; its neighbours want theirs
_HAS_UINT8_KERNEL = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
    "aarch64",
    "arm64",
)
"""torchvision resizes uint8 as it is on these processors, and by way of float on others (``resize_image``)."""


def resize_bilinear(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Antialiased bilinear resize of ``(H, W, 3)`` uint8 to ``size`` ``(h, w)``, bit-equal to the SAM3 processor's.

    The processor calls ``torchvision.transforms.v2.functional.resize``; this is what that does for such an image.
    Loading torchvision itself would cost every decode process several seconds and 150 MB.
    """
    nchw = torch.from_numpy(image).permute(2, 0, 1)[None]
    if not _HAS_UINT8_KERNEL:
        nchw = nchw.float()
    scaled = F.interpolate(nchw, size=list(size), mode="bilinear", antialias=True, align_corners=False)
    if not _HAS_UINT8_KERNEL:
        scaled = scaled.round_().to(torch.uint8)
    return np.ascontiguousarray(scaled[0].permute(1, 2, 0).numpy())
