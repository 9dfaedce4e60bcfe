"""Measure identities: the memory tracker alone from a given first mask, and the whole pipeline on encoded clips."""

import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.recipe import train_tracker
from models.recipe.clips import CATEGORIES, Clip, encode, evaluation_clip, evaluation_set
from models.recipe.net import Shape, Tiny

PACKAGED = Path(__file__).parent.parent / "tiny"
MIN_VISIBLE = 60  # pixels of a 480x270 frame below which a thing counts as hidden
Ids = NDArray[np.int64]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """One clip under one tracker: per frame the true ids, the found ids and their mask IoU [true, found]."""

    category: str
    true: list[Ids]
    found: list[Ids]
    iou: list[NDArray[np.float64]]


# ------------------------------------------------------------------------------------------------ memory tracker alone
def memory_table(tiny: Tiny, batches: int = 10) -> dict[str, float]:
    """Mean IoU over visible frames of 10-frame training-like clips of a held-out seed, the first mask given."""
    shape = Shape(image=tiny.config.tracker_config.image_size)
    rng = np.random.default_rng([777, 9])
    tracks = [train_tracker.sample_tracks(rng, 4, 10, 2, shape) for _ in range(batches)]
    decoder = tiny.tracker.mask_decoder

    class Neck(torch.nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            levels = tiny.neck(x)[0]
            return [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2]]

    unroll = train_tracker.Unroll(tiny.tracker, tiny.neck, shape)
    figures = train_tracker.evaluate(unroll, tiny.detector.vision_encoder.backbone, Neck(), tracks, shape)
    by_frame = figures.pop("by_frame")
    assert isinstance(by_frame, list)
    table = {k: float(v) for k, v in figures.items() if not isinstance(v, list)}
    return table | {f"miou in frame {t}": v for t, v in enumerate(by_frame, start=1)}


# ------------------------------------------------------------------------------------------------ pipeline
def _ious(a: Masks, b: Masks) -> NDArray[np.float64]:
    """Mask IoU [n,m] of [n,H,W] and [m,H,W]."""
    x, y = (v.reshape(len(v), int(np.prod(v.shape[1:]))).astype(np.float32) for v in (a, b))
    overlap = x @ y.T
    return np.asarray(overlap / np.maximum(x.sum(1)[:, None] + y.sum(1)[None] - overlap, 1), dtype=np.float64)


def _truth(clip: Clip, frame: int) -> tuple[Ids, Masks]:
    """Ids and masks of the targets that are visible in a frame."""
    masks = np.stack([clip.ids[frame] == i + 1 for i in range(len(clip.targets))])
    seen = masks.sum((1, 2)) >= MIN_VISIBLE
    return np.flatnonzero(seen), masks[seen]


def score(clip: Clip, frames: Sequence[tuple[Ids, Masks]]) -> Scored:
    """Compare what was found (ids, masks per frame) with the truth of the clip."""
    truths = [_truth(clip, t) for t in range(len(frames))]
    ious = [_ious(masks, found) for (_, masks), (_, found) in zip(truths, frames, strict=True)]
    return Scored(clip.category, [ids for ids, _ in truths], [ids for ids, _ in frames], ious)


def run_pipeline(
    clip: Clip, path: Path, model: Path, tracker: str, options: Sequence[str] = ()
) -> list[tuple[Ids, Masks]]:
    """`masklet track` on an encoded clip: ids and full-size masks per frame."""
    from pipeline import track

    # By its name, so that the product's own settings for it (configs/tiny.yaml) apply.
    name = "tiny" if model.resolve() == PACKAGED else str(model)
    results = track(str(path), text=[clip.phrase], model=name, tracker=tracker, device="cpu", set=list(options))
    frames = {r.index: (r.masklet_id.astype(np.int64), r.masks()) for r in results}
    empty = (np.zeros(0, np.int64), np.zeros((0, *clip.ids.shape[1:]), bool))
    return [frames.get(t, empty) for t in range(len(clip.images))]


def copy_last(frames: Sequence[tuple[Ids, Masks]]) -> list[tuple[Ids, Masks]]:
    """The baseline that finds things once and then copies their last masks for ever."""
    first = next((f for f in frames if len(f[0])), frames[0])
    return [first] * len(frames)


def _dominant(scored: Scored, target: int, frames: Sequence[int]) -> int:
    """The found id that covers the target (IoU 0.5) in most of these frames, -1 without any."""
    votes: dict[int, int] = defaultdict(int)
    for t in frames:
        for row in np.flatnonzero(scored.true[t] == target):
            if scored.iou[t].shape[1] and scored.iou[t][row].max() >= 0.5:
                votes[int(scored.found[t][scored.iou[t][row].argmax()])] += 1
    return max(votes, key=lambda k: votes[k], default=-1)


def kept_after_occlusion(scored: Scored, target: int = 1) -> bool:
    """Whether the passing thing has the same id before and after it is out of sight."""
    hidden = [t for t, ids in enumerate(scored.true) if target not in ids]
    before = _dominant(scored, target, range(hidden[0]))
    return before != -1 and before == _dominant(scored, target, range(hidden[-1] + 1, len(scored.true)))


def summarise(scored: Sequence[Scored], name: str) -> dict[str, float]:
    """HOTA, IDF1 and identity switches over clips."""
    from pipeline.evaluate.clear import clear, combine_clear
    from pipeline.evaluate.hota import combine_hota, hota
    from pipeline.evaluate.identity import combine_identity, identity

    parts = [(s.true, s.found, s.iou) for s in scored]
    ids = combine_identity([identity(*p) for p in parts])
    return {
        f"{name} HOTA": combine_hota([hota(*p) for p in parts]).hota,
        f"{name} IDF1": 2 * ids.idtp / max(2 * ids.idtp + ids.idfn + ids.idfp, 1),
        f"{name} identity switches": float(combine_clear([clear(*p) for p in parts]).id_switches),
    }


# ------------------------------------------------------------------------------------------------ many clips
Contestants = Mapping[str, tuple[str, Sequence[str]]]
"""Tracker and settings by name."""
COPY = "copy the last mask"
SPEED_FRAMES = 300


def track_all(model: Path, count: int, contestants: Contestants, workers: int = 1) -> dict[str, list[Scored]]:
    """Every evaluation clip under every contestant, several clips at a time.

    Look-alike clips also under :func:`copy_last` of what the first contestant found, as ``COPY``.
    """
    found: dict[str, list[Scored]] = defaultdict(list)
    one = partial(_track_one, model, dict(contestants))
    seeds, categories = zip(*evaluation_set(count), strict=True)
    with ExitStack() as stack:
        spread: Any = map
        if workers > 1:
            spread = stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))).map
        for scores in spread(one, seeds, categories):
            for name, scored in scores.items():
                found[name].append(scored)
    return dict(found)


def _track_one(model: Path, contestants: Contestants, seed: int, category: str) -> dict[str, Scored]:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        clip, path = evaluation_clip(seed, category), Path(folder) / f"{seed}.mp4"
        encode(clip, path)
        for name, (tracker, options) in contestants.items():
            results[name] = run_pipeline(clip, path, model, tracker, ["device.threads=1", *options])
    if category == "look-alike":
        results[COPY] = copy_last(next(iter(results.values())))
    return {name: score(clip, frames) for name, frames in results.items()}


def speed(model: Path, options: Sequence[str] = ()) -> float:
    """Frames/s of one clip of 300 frames, three things and one phrase: decoding and starting up included."""
    clip = evaluation_clip(13_000, "look-alike", SPEED_FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode(clip, path)
        start = time.perf_counter()
        found = run_pipeline(clip, path, model, "sam3_memory", options)
        return len(found) / (time.perf_counter() - start)


def pipeline_table(model: Path, count: int = 50, options: Sequence[str] = (), workers: int = 1) -> dict[str, float]:
    """All tracking figures, beside box association; look-alike clips also under copying the last mask."""
    table = {"frames per second, end to end": speed(model, options)}
    contestants = {"ours": ("sam3_memory", options), "boxes": ("bytetrack", options)}
    found = track_all(model, count, contestants, workers)
    ours, boxes = found["ours"], found["boxes"]
    table |= summarise(ours, "all clips") | summarise(boxes, "all clips, box association")
    for category in CATEGORIES:
        table |= summarise([s for s in ours if s.category == category], category)
        table |= summarise([s for s in boxes if s.category == category], f"{category}, box association")
    table |= summarise(found.get(COPY, []), f"look-alike, {COPY}")
    table["identity kept after occlusion"] = float(
        np.mean([kept_after_occlusion(s) for s in ours if s.category == "occlusion"])
    )
    return table
