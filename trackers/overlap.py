"""Objects of one phrase that claim the same pixels: who may remember them. Torch, on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.device_memory import upload
from pipeline.types import Int16Array

_SHRINK_RATIO = 0.3
"""An object that keeps less of its area is taken for a copy of another (SAM3, ``_suppress_shrunk_masks``)."""
CLEARED_LOGIT = -10.0
"""Mask logit of what was taken away."""


def clear_shrunk(logits: Tensor, prompt_id: Int16Array) -> Tensor:
    """Empty the masks that would keep less than 30 % of their area if each pixel went to its strongest object.

    Args:
        logits: ``(M, h, w)``; a new tensor is returned, masks that stay are unchanged (overlaps remain).
        prompt_id: ``(M,)``; objects of different phrases may share pixels.

    Source: facebookresearch/sam3 ``_suppress_object_pw_area_shrinkage``.
    """
    cleared = logits.clone()
    for prompt in np.unique(prompt_id):
        rows = np.flatnonzero(prompt_id == prompt)
        if len(rows) > 1:
            at = upload(rows, logits.device)
            cleared[at] = _clear_shrunk(logits[at])
    return cleared


def _clear_shrunk(logits: Tensor) -> Tensor:
    inside = logits > 0
    owner = logits.argmax(0)
    owned = inside & (owner[None] == torch.arange(len(logits), device=logits.device)[:, None, None])
    area, owned_area = inside.flatten(1).sum(1), owned.flatten(1).sum(1)
    keeps = owned_area / area.clamp(min=1) >= _SHRINK_RATIO
    return torch.where(keeps[:, None, None], logits, logits.clamp(max=CLEARED_LOGIT))
