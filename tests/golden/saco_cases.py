"""Seeded SA-Co/VEval cases: masklets per video and phrase, and the JSON that Meta's evaluation toolkit reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from pipeline import masks as mask_ops
from pipeline.types import RLE

SIZE = (48, 64)


@dataclass(frozen=True)
class CaseTrack:
    """One masklet: a mask or ``None`` per frame."""

    phrase: str
    masks: tuple[RLE | None, ...]
    score: float = 1.0


@dataclass(frozen=True)
class CaseVideo:
    """One video with everything that was asked of it."""

    video_id: int
    num_frames: int
    asked: tuple[str, ...]
    gt: tuple[CaseTrack, ...]
    pred: tuple[CaseTrack, ...]


@dataclass(frozen=True)
class _Recipe:
    """How a case is hard."""

    seed: int
    frames: int = 8
    videos: int = 3
    wobble: float = 2.0
    scores: Sequence[float] = field(default_factory=lambda: tuple(np.linspace(0.3, 0.99, 24)))
    missed: float = 0.15
    """Share of objects without a prediction."""
    invented: int = 1
    """Predictions per video that match nothing, on a phrase that may be absent."""
    mislabelled: float = 0.1
    broken: float = 0.2
    """Share of predictions cut into two ids."""
    visible: float = 0.8


PHRASES = ("cat", "dog", "red car", "person", "tree")

RECIPES = {
    "typical": _Recipe(0),
    "all scores at the threshold": _Recipe(1, scores=(0.5,)),
    "single frame": _Recipe(2, frames=1, visible=1.0),
    "many absent phrases": _Recipe(3, missed=0.6, invented=4),
    "no invented tracks": _Recipe(4, invented=0, missed=0.3, mislabelled=0.0),
    "labels often wrong": _Recipe(5, mislabelled=0.6, missed=0.0),
    "identities often broken": _Recipe(6, broken=0.9, frames=14, visible=0.5),
    "equal scores": _Recipe(7, scores=(0.7,), invented=3),
    "perfect": _Recipe(8, wobble=0.0, scores=(1.0,), missed=0.0, invented=0, mislabelled=0.0, broken=0.0),
    "crowded": _Recipe(9, videos=2, frames=10, invented=6, wobble=4.0),
}


def make_case(name: str) -> list[CaseVideo]:
    """The videos of this case, the same on every call."""
    recipe = RECIPES[name]
    rng = np.random.default_rng(recipe.seed)
    return [_video(rng, recipe, i + 1) for i in range(recipe.videos)]


def _video(rng: np.random.Generator, recipe: _Recipe, video_id: int) -> CaseVideo:
    asked = tuple(PHRASES[i] for i in rng.permutation(len(PHRASES))[:4])
    gt, pred = [], []
    for phrase in asked[:3]:  # the fourth phrase is asked of a video that has nothing of it
        for _ in range(int(rng.integers(1, 4))):
            path = rng.uniform(8, 44, 2) + np.outer(np.arange(recipe.frames), rng.uniform(-1.5, 1.5, 2))
            seen = rng.random(recipe.frames) < recipe.visible
            seen[0] = True
            radii = rng.integers(4, 11, 2)
            gt.append(CaseTrack(phrase, _masks(path, radii, seen)))
            if rng.random() < recipe.missed:
                continue
            path = path + rng.normal(0, recipe.wobble, path.shape)
            label = str(rng.choice(asked)) if rng.random() < recipe.mislabelled else phrase
            score = float(rng.choice(recipe.scores))
            cut = recipe.frames // 2 if rng.random() < recipe.broken and recipe.frames > 1 else recipe.frames
            for lo, hi in ((0, cut), (cut, recipe.frames)):
                part = seen & (np.arange(recipe.frames) >= lo) & (np.arange(recipe.frames) < hi)
                if part.any():
                    pred.append(CaseTrack(label, _masks(path, radii, part), score))
    for _ in range(recipe.invented):
        path = rng.uniform(8, 44, 2) + np.zeros((recipe.frames, 1))
        masks = _masks(path, rng.integers(4, 11, 2), np.ones(recipe.frames, bool))
        pred.append(CaseTrack(str(rng.choice(asked)), masks, float(rng.choice(recipe.scores))))
    return CaseVideo(video_id, recipe.frames, asked, tuple(gt), tuple(pred))


def _masks(path: Any, radii: Any, seen: Any) -> tuple[RLE | None, ...]:
    out: list[RLE | None] = []
    for (x, y), visible in zip(path, seen, strict=True):
        canvas = np.zeros(SIZE, np.uint8)
        if visible:
            cv2.ellipse(canvas, (int(x), int(y)), tuple(int(r) for r in radii), 0, 0, 360, 1, -1)
        out.append(mask_ops.encode(canvas.astype(bool)[None])[0] if canvas.any() else None)
    return tuple(out)


def gt_json(videos: Sequence[CaseVideo]) -> dict[str, Any]:
    """SA-Co/VEval ground truth."""
    annotations = [
        {
            **_columns(track),
            "id": i + 1,
            "iscrowd": 0,
            "video_id": video.video_id,
            "height": SIZE[0],
            "width": SIZE[1],
            "category_id": PHRASES.index(track.phrase) + 1,
            "noun_phrase": track.phrase,
        }
        for i, (video, track) in enumerate((v, t) for v in videos for t in v.gt)
    ]
    pairs = [
        {
            "id": i + 1,
            "video_id": video.video_id,
            "category_id": PHRASES.index(phrase) + 1,
            "noun_phrase": phrase,
            "num_masklets": sum(t.phrase == phrase for t in video.gt),
        }
        for i, (video, phrase) in enumerate((v, p) for v in videos for p in v.asked)
    ]
    return {
        "info": {},
        "videos": [
            {
                "id": v.video_id,
                "video_name": f"video_{v.video_id}",
                "file_names": [f"video_{v.video_id}/{t:05d}.jpg" for t in range(v.num_frames)],
                "height": SIZE[0],
                "width": SIZE[1],
                "length": v.num_frames,
            }
            for v in videos
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": p} for i, p in enumerate(PHRASES)],
        "video_np_pairs": pairs,
    }


def pred_json(videos: Sequence[CaseVideo]) -> list[dict[str, Any]]:
    """SA-Co/VEval predictions."""
    return [
        {
            **_columns(track),
            "video_id": video.video_id,
            "category_id": PHRASES.index(track.phrase) + 1,
            "score": track.score,
        }
        for video in videos
        for track in video.pred
    ]


def _columns(track: CaseTrack) -> dict[str, list[Any]]:
    boxes = [None if m is None else [float(v) for v in _xywh(m)] for m in track.masks]
    return {
        "segmentations": [None if m is None else {"size": [*m.size], "counts": m.counts.decode()} for m in track.masks],
        "bboxes": boxes,
        "areas": [None if m is None else int(mask_ops.areas([m])[0]) for m in track.masks],
    }


def _xywh(mask: RLE) -> Any:
    x1, y1, x2, y2 = mask_ops.rle_boxes([mask])[0]
    return x1, y1, x2 - x1, y2 - y1
