"""SAM3's detection losses at small scale: Hungarian matching per layer, varifocal scores, boxes, presence, masks."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.recipe.net import Found


def to_xyxy(box: Tensor) -> Tensor:
    """cxcywh [...,4] -> xyxy [...,4]."""
    return torch.cat([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1)


def to_cxcywh(box: Tensor) -> Tensor:
    """xyxy [...,4] -> cxcywh [...,4]."""
    return torch.cat([(box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]], -1)


def box_iou_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of xyxy boxes, broadcast over leading dimensions (Rezatofighi et al., 2019)."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = ((v[..., 2:] - v[..., :2]).clamp(min=0).prod(-1) for v in (a, b))
    union = area_a + area_b - overlap
    iou = overlap / union.clamp(min=1e-6)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient per mask: logits, target [N,...] -> [N]."""
    p, t = logits.sigmoid().flatten(1), target.flatten(1)
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def match(found: Found, targets: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hungarian matching per layer and prompt -> (layer, prompt, query, target) index vectors.

    targets: xyxy [P,T,4], padded. The first layer is one-to-many (each target twice), the later ones one-to-one.
    """
    with torch.no_grad():
        _, giou = box_iou_giou(to_xyxy(found.boxes)[:, :, :, None], targets[None, :, None])
        distance = (found.boxes[:, :, :, None] - to_cxcywh(targets)[None, :, None]).abs().sum(-1)
        cost = (5 * distance - 2 * giou - 2 * found.logits.sigmoid()[..., None]).numpy()
    rows: list[list[int]] = []
    for prompt, n in enumerate(counts):
        for layer in range(len(cost) if n else 0):
            repeats = 2 if layer == 0 and 2 * n <= cost.shape[2] else 1
            queries, chosen = linear_sum_assignment(np.tile(cost[layer, prompt, :, :n], (1, repeats)))
            rows += [[layer, prompt, int(q), int(t) % n] for q, t in zip(queries, chosen, strict=True)]
    index = torch.tensor(rows, dtype=torch.long).reshape(-1, 4)
    return index[:, 0], index[:, 1], index[:, 2], index[:, 3]


def detection_loss(
    found: Found, boxes: list[Tensor], masked: Tensor, masks: list[Tensor], negatives: float = 0.5
) -> dict[str, Tensor]:
    """Weighted loss terms.

    boxes: per prompt [n,4] xyxy; masked [M]: prompts that have masks; masks: per masked prompt [n,r,r] soft targets;
    negatives: weight of the scores of what is not asked for.
    """
    layers, prompts, _ = found.logits.shape
    counts = [len(b) for b in boxes]
    targets = torch.full((prompts, max(1, *counts), 4), 0.5)
    for p, b in enumerate(boxes):
        targets[p, : len(b)] = b
    layer, prompt, query, target = match(found, targets, counts)
    mine, truth = found.boxes[layer, prompt, query], targets[prompt, target]
    iou, giou = box_iou_giou(to_xyxy(mine), truth)
    positives = max(sum(counts), 1)
    quality = torch.zeros_like(found.logits)
    quality[layer, prompt, query] = iou.detach().clamp(min=0.05).sqrt()
    weight = torch.where(
        quality > 0, quality, negatives * found.logits.detach().sigmoid() ** 2
    )  # varifocal (Zhang et al., 2021)
    scores = F.binary_cross_entropy_with_logits(found.logits, quality, reduction="none") * weight
    present = torch.tensor([float(n > 0) for n in counts]).expand(layers, prompts)
    parts = {
        "score": 2 * scores.sum() / positives / layers,
        "l1": 5 * (mine - to_cxcywh(truth)).abs().sum() / positives / layers,
        "giou": 2 * (1 - giou).sum() / positives / layers,
        "presence": 2 * F.binary_cross_entropy_with_logits(found.presence, present),
    }
    if found.masks is None or found.semantic is None:
        return parts
    place = {int(p): j for j, p in enumerate(masked)}
    final = [
        (place[int(p)], int(q), int(t))
        for k, p, q, t in zip(layer, prompt, query, target, strict=True)
        if k == layers - 1 and int(p) in place
    ]
    if final:
        drawn = torch.stack([found.masks[j, q] for j, q, _ in final])
        wanted = torch.stack([masks[j][t] for j, _, t in final])
        parts["mask"] = 8 * F.binary_cross_entropy_with_logits(drawn, wanted)
        parts["dice"] = 4 * dice(drawn, wanted).mean()
    union = torch.stack([m.sum(0).clamp(max=1) for m in masks])
    parts["semantic"] = (
        2 * F.binary_cross_entropy_with_logits(found.semantic, union) + dice(found.semantic, union).mean()
    )
    return parts
