"""The memory tracker against transformers' ``Sam3VideoModel``: same weights, same detections, frame by frame."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from configs.schema import TrackerConfig
from pipeline.types import Frame
from tests import tinyconf
from tests.golden.peer_video import Peer, PeerFrame, blank_frame
from tests.scenes import Scene, make_scene
from trackers.lifecycle import Evidence, UpdatePlan
from trackers.rendering import LowResTracks
from trackers.sam3_memory import Sam3MemoryTracker
from trackers.sam_heads import Decoded

SIDE, LOW = 112, 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _model(seed: int, tracker: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A random model whose objects are mostly in the picture; ``tracker`` changes its tracker's architecture."""
    config = tinyconf.video_config(width=128, fill_hole_area=0, det_nms_thresh=0.0, **changes)
    config.tracker_config = tinyconf.tracker_config(SIDE, 128, **(tracker or {}))
    model = tinyconf.video_model(config, seed)
    with torch.no_grad():
        model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias += 2
    return model


def _video(seed: int, num_frames: int) -> torch.Tensor:
    """A drifting random picture with noise."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, SIDE, SIDE, generator=generator)
    frames = [base.roll(2 * t, -1) + 0.2 * torch.randn(3, SIDE, SIDE, generator=generator) for t in range(num_frames)]
    return torch.stack(frames)


class Ours:
    """Our tracker on the reference's weights, features and detections; ids from 0 as the reference's."""

    def __init__(self, model: Any, config: TrackerConfig) -> None:
        self.hidden = torch.zeros(0)
        parts = SimpleNamespace(neck=model.tracker_neck, model=model.tracker_model)
        self.tracker = Sam3MemoryTracker(parts, self._features, config, stream_id="clip")
        self.events: Counter[str] = Counter()
        plan = self.tracker._lifecycle.plan

        def counted(step: int, seen: Evidence) -> UpdatePlan:
            made = plan(step, seen)
            self.events += Counter(
                born_later=len(made.new) * (step > 0),
                withdrawn=int(made.withdrawn.sum()),
                hidden=int(made.hidden.sum()),
                yields=int(made.yields.sum()),
                reconditioned=int((made.recondition >= 0).sum()),
            )
            return made

        self.tracker._lifecycle.plan = counted  # type: ignore[method-assign]

    def _features(self, frame: Frame) -> torch.Tensor:
        return self.hidden

    def advance(self, t: int, peer: PeerFrame) -> LowResTracks:
        self.hidden = peer.hidden
        return self.tracker.advance(blank_frame(t, SIDE), peer.detections)

    def blend(self, mix: Any) -> None:
        inner = self.tracker._propagate

        def mixed(vision: Any) -> Decoded:
            found = inner(vision)
            if len(found.logits) == 0:
                return found
            ids = (self.tracker._lifecycle.track_ids - 1).tolist()
            logits, scores = mix(self.tracker._step, ids, found.logits, found.object_logit)
            return Decoded(logits, scores, found.pointer)

        self.tracker._propagate = mixed  # type: ignore[method-assign]


SMALL_MEMORY = {
    "num_maskmem": 4,
    "max_object_pointers_in_encoder": 4,
    "multimask_output_for_tracking": False,
    "layers": 2,
    "enable_occlusion_spatial_embedding": False,
}
"""As in the packaged tiny checkpoint, but for the last."""


@pytest.mark.parametrize(
    ("seed", "num_prompts", "architecture"),
    [(1, 1, {}), (3, 2, {}), (5, 1, {}), (9, 1, {}), (12, 1, {}), (13, 1, SMALL_MEMORY)],
)
def test_without_arrivals_or_removals_logits_agree(seed: int, num_prompts: int, architecture: dict[str, Any]) -> None:
    """The reference as it is. All objects start on frame 0; occlusion rules and memory overlap are on."""
    model = _model(seed, architecture, recondition_every_nth_frame=0)
    model.hotstart_delay = 0  # no removals
    scene = make_scene(seed, num_actors=5, num_prompts=num_prompts, arrivals=False)
    frames = Peer(model, _video(seed, 20), num_prompts, lambda t: _script(scene, t)).frames()
    first = next(frames)
    model.new_det_thresh = 2.0  # no arrivals
    config = TrackerConfig(
        hotstart_delay_frames=0, recondition_every_frames=0, fill_hole_area_px=0, new_object_score=1.0
    )
    ours = Ours(model, config)
    num_filled = 0
    for t, peer in enumerate([first, *frames]):
        low = ours.advance(t, peer)
        assert (low.track_id - 1).tolist() == peer.live
        for row, track in enumerate(peer.live):
            difference = (low.logits[row] - peer.logits[track]).abs().max().item()
            assert difference <= 1e-3, f"frame {t}, object {track}"
            num_filled += bool(0 < (low.logits[row] > 0).float().mean() < 1)
        if t > 0:
            assert low.score == pytest.approx([peer.tracker_score[track] for track in peer.live], abs=1e-4)
    assert len(first.live) >= 2
    assert num_filled > 20, "the clip says nothing: almost all masks are empty or full"


def _script(scene: Scene, t: int) -> tuple[torch.Tensor, list[float], list[int]]:
    found = scene.detections(t, (LOW, LOW))
    return torch.from_numpy(found.mask_logits), found.score.tolist(), found.prompt_id.tolist()


class Acted:
    """A scene that decides what is detected and, mostly, what is propagated.

    The model's own logits still move the edges of the masks, so that an error in memory shows in later masks.
    """

    def __init__(self, scene: Scene, num_prompts: int) -> None:
        self._scene, self._num_prompts = scene, num_prompts
        self._rng = np.random.default_rng(scene.seed)
        self._actor_of: dict[int, int | None] = {}

    def detections(self, t: int) -> tuple[torch.Tensor, list[float], list[int]]:
        """Most actors with varying scores, now and then a false alarm (repeated, so that some live for a while)."""
        found = self._scene.detections(t, (LOW, LOW), min_pixels=12)
        found = found[self._rng.random(len(found)) > 0.12]
        masks, prompts = list(found.mask_logits), found.prompt_id.tolist()
        scores = self._rng.uniform(0.62, 0.99, len(found)).tolist()
        if t % 9 == 3:
            alarm = np.full((LOW, LOW), -8, np.float32)
            y, x = self._rng.integers(0, LOW - 6, 2)
            alarm[y : y + 6, x : x + 6] = 8
            masks, scores, prompts = [*masks, alarm], [*scores, 0.9], [*prompts, self._num_prompts - 1]
        stacked = np.stack(masks) if masks else np.zeros((0, LOW, LOW), np.float32)
        return torch.tensor(stacked, dtype=torch.float32), scores, prompts

    def propagated(
        self, t: int, ids: list[int], logits: torch.Tensor, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Objects follow the actor they began on; those that began on none stay where they are."""
        soft = [cv2.blur(mask.astype(np.float32), (3, 3)) for mask in self._scene.outlines(t, (LOW, LOW))]
        rows = []
        for row, track in enumerate(ids):
            actor = self._actor_of.get(track)
            edge = 2 * torch.tanh(logits[row].clamp(-50, 50) / 2)
            rows.append(edge - 1 if actor is None else 10 * (torch.from_numpy(soft[actor]) - 0.5) + edge)
        if len(rows) > 1 and 12 <= t < 18:
            # The first object hides for two frames, then comes up on top of the second.
            rows[0] = torch.full_like(rows[0], -5) if t < 14 else rows[1] + 0.1 * rows[0]
        return torch.stack(rows), 1.5 + 2 * torch.tanh(scores)

    def note(self, t: int, low: LowResTracks) -> None:
        """Remember on which actor each new object began."""
        visible = self._scene.masks(t, (LOW, LOW))
        for row, track in enumerate((low.track_id - 1).tolist()):
            if track not in self._actor_of:
                overlap = (visible & (low.logits[row].numpy() > 0)).sum((1, 2))
                self._actor_of[track] = int(overlap.argmax()) if overlap.any() else None


@pytest.mark.parametrize(
    ("seed", "num_prompts", "expected"),
    [
        (1, 2, {"born_later", "reconditioned", "withdrawn"}),
        (2, 3, {"born_later", "reconditioned", "withdrawn", "hidden"}),
        (4, 1, {"born_later", "reconditioned", "withdrawn", "yields"}),
        (5, 3, {"born_later", "reconditioned", "withdrawn"}),
        (6, 1, {"born_later", "reconditioned", "withdrawn", "hidden"}),
        (7, 2, {"born_later", "reconditioned", "withdrawn"}),
    ],
)
def test_with_arrivals_removals_and_reconditioning_masks_agree(seed: int, num_prompts: int, expected: set[str]) -> None:
    """The reference with its faults repaired; several phrases; false alarms; both keep-alive rules."""
    events = _compare(seed, num_prompts, num_actors=5)
    assert expected <= {name for name, count in events.items() if count}


_CROWDS = [(seed, 1 + seed % 4, 6 + (seed * 7) % 27) for seed in range(20, 40)]
"""Seed, phrases and actors of 20 further clips; up to 32 actors."""


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "num_prompts", "num_actors"), _CROWDS)
def test_crowds_agree(seed: int, num_prompts: int, num_actors: int) -> None:
    """As above, with more objects."""
    assert _compare(seed, num_prompts, num_actors)["born_later"] > 0


def _compare(seed: int, num_prompts: int, num_actors: int) -> Counter[str]:
    """Ours against the repaired reference on one clip, frame by frame; what happened in it."""
    only_in_hotstart = bool(seed % 2)
    model = _model(
        seed, recondition_every_nth_frame=4, suppress_unmatched_only_within_hotstart=only_in_hotstart,
        init_trk_keep_alive=3, max_trk_keep_alive=6, suppress_overlapping_based_on_recent_occlusion_threshold=0.15,
    )  # fmt: skip
    num_frames = 36
    scene = make_scene(seed, num_actors=num_actors, num_frames=num_frames, num_prompts=num_prompts)
    acted = Acted(scene, num_prompts)
    peer = Peer(model, _video(seed, num_frames), num_prompts, acted.detections)
    peer.repair()
    peer.blend(acted.propagated)
    ours = Ours(
        model,
        TrackerConfig(
            recondition_every_frames=4,
            recondition_with="tracked",
            fill_hole_area_px=0,
            suppress_unmatched_only_within_hotstart=only_in_hotstart,
            keep_alive_init_frames=3,
            keep_alive_max_frames=6,
            occlusion_suppress_iou=0.15,
        ),
    )
    ours.blend(acted.propagated)
    removed: set[int] = set()
    for t, theirs in enumerate(peer.frames()):
        low = ours.advance(t, theirs)
        ids = (low.track_id - 1).tolist()
        hidden = peer.session.suppressed_obj_ids[t]
        assert ids == [track for track in theirs.live if track not in hidden], f"frame {t}"
        assert set((low.withdrawn - 1).tolist()) == theirs.removed - removed
        removed = theirs.removed
        for row, track in enumerate(ids):
            assert _iou(low.logits[row] > 0, theirs.logits[track] > 0) >= 0.99, f"frame {t}, object {track}"
        acted.note(t, low)
    return ours.events


def _iou(a: torch.Tensor, b: torch.Tensor) -> float:
    union = (a | b).sum().item()
    return (a & b).sum().item() / union if union else 1.0
