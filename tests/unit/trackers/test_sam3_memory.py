from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from configs.schema import TrackerConfig
from pipeline.errors import RunError
from pipeline.types import Detections, Frame, FrameTracks
from tests import tinyconf
from tests.scenes import Scene, make_scene
from trackers import sam_heads
from trackers.sam3_memory import Sam3MemoryTracker
from trackers.sam_heads import SamHeads, fuse_neck

SIDE, LOW = 112, 32
SIZE = (60, 80)


class Parts(SimpleNamespace):
    neck: nn.Module
    model: nn.Module


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.set_num_threads(1)
    config = tinyconf.tracker_config(SIDE, 128)
    both = nn.ModuleDict(
        {
            "neck": Sam3VisionNeck(config.vision_config),
            "model": Sam3TrackerVideoModel(config, remove_vision_encoder=True),
        }
    )
    tinyconf.randomize(both, 0)
    with torch.no_grad():
        both["model"].mask_decoder.pred_obj_score_head.proj_out.bias += 3
    return Parts(neck=both["neck"], model=both["model"])


def features(frame: Frame) -> torch.Tensor:
    """Random, but the same for the same frame."""
    return torch.randn(1, (SIDE // 14) ** 2, 64, generator=torch.Generator().manual_seed(frame.index))


def frame(index: int) -> Frame:
    return Frame("s", index, index / 24, np.zeros((2, 2, 3), np.uint8), SIZE)


def tracker(parts: Parts, **changes: Any) -> Sam3MemoryTracker:
    """Random weights lose their objects, so that detections start new ones all the time: hence a budget."""
    config = TrackerConfig(**{"max_objects": 8} | changes)
    return Sam3MemoryTracker(parts, features, config, stream_id="s")


def detections(scene: Scene, t: int) -> Detections:
    return scene.detections(t, (LOW, LOW))


def run(made: Sam3MemoryTracker, scene: Scene, steps: Sequence[int]) -> list[FrameTracks]:
    return [made.step(frame(t), detections(scene, t)) for t in steps]


def test_the_fused_neck_equals_the_neck(parts: Parts) -> None:
    """Borders included, where the biases of the chain meet the zero padding."""
    decoder: Any = parts.model.mask_decoder
    grid = (SIDE // 14, SIDE // 14)
    spatial = torch.randn(1, 64, *grid, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pyramid = parts.neck(spatial)[0]
        expected = [decoder.conv_s0(pyramid[0]), decoder.conv_s1(pyramid[1]), pyramid[2]]
        for level, want in zip(fuse_neck(parts.neck, decoder, grid), expected, strict=True):
            torch.testing.assert_close(level(spatial), want, atol=1e-4, rtol=1e-4)


def test_tracks_are_well_formed(parts: Parts) -> None:
    scene = make_scene(3, num_actors=5, num_prompts=2)
    seen: set[int] = set()
    for t, tracks in enumerate(run(tracker(parts), scene, range(20))):
        assert tracks.index == t
        assert (np.diff(tracks.track_id) > 0).all()
        assert ((tracks.score >= 0) & (tracks.score <= 1)).all()
        assert all(mask.size == SIZE for mask in tracks.masks)
        seen |= set(tracks.track_id.tolist())
    assert min(seen) == 1
    assert len(seen) >= 3


def test_state_is_the_same_size_after_40_and_400_frames(parts: Parts) -> None:
    made = tracker(parts, recondition_every_frames=4, hotstart_delay_frames=0, new_object_score=1.0)
    scene = make_scene(1, num_actors=1, arrivals=False)
    sizes = {}
    for t in range(400):
        made.advance(frame(t), detections(scene, t % 30))
        sizes[t + 1] = made.num_state_bytes
    digits = 10 * len(str(400))  # steps and ids are written in decimal
    assert abs(sizes[400] - sizes[40]) <= digits
    assert sizes[40] > 10_000


def test_restored_continues_bit_equal(parts: Parts, tmp_path: Path) -> None:
    scene = make_scene(5, num_actors=4, num_prompts=2)
    whole = tracker(parts, recondition_every_frames=5)
    run(whole, scene, range(13))
    whole.save(tmp_path / "state")
    resumed = tracker(parts, recondition_every_frames=5)
    resumed.restore(tmp_path / "state")
    for t in range(13, 30):
        a, b = (made.advance(frame(t), detections(scene, t)) for made in (whole, resumed))
        assert torch.equal(a.logits, b.logits)
        assert a.track_id.tolist() == b.track_id.tolist()
        assert a.score.tobytes() == b.score.tobytes()
        assert a.withdrawn.tolist() == b.withdrawn.tolist()
    assert whole.counters == resumed.counters


def test_an_empty_state_is_restored_too(parts: Parts, tmp_path: Path) -> None:
    tracker(parts).save(tmp_path)
    made = tracker(parts)
    made.restore(tmp_path)
    assert len(run(made, make_scene(0), [0])[0]) > 0


def test_no_state_to_restore(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read the tracker's state"):
        tracker(parts).restore(tmp_path)


@pytest.mark.parametrize("path", ["batched", "one by one, scores written out", "one by one, blockwise"])
def test_all_objects_at_once_equal_one_by_one(parts: Parts, path: str) -> None:
    """Objects of different ages and with different numbers of conditioning frames, by every way to read a memory."""
    together, alone = (tracker(parts, recondition_every_frames=3) for _ in range(2))
    alone._heads.budget_bytes = 1
    assert alone._heads.one_by_one, "the default on a CPU"
    together._heads.budget_bytes = 2**31
    together._heads.one_by_one = path != "batched"
    together._heads.written_out_bytes = 2**31 if "written out" in path else 0
    scene = make_scene(9, num_actors=7, num_frames=14, num_prompts=2)
    most = 0
    for t in range(14):
        a, b = (made.advance(frame(t), detections(scene, t)) for made in (together, alone))
        assert a.track_id.tolist() == b.track_id.tolist()
        torch.testing.assert_close(a.logits, b.logits, atol=1e-3, rtol=0)
        most = max(most, len(a.track_id))
    assert most >= 6


def test_two_streams_on_one_model_do_not_meet(parts: Parts) -> None:
    scenes = [make_scene(6), make_scene(7, num_prompts=2)]
    alone = [run(tracker(parts), scene, range(10)) for scene in scenes]
    made = [tracker(parts) for _ in scenes]
    together = [[m.step(frame(t), detections(s, t)) for m, s in zip(made, scenes, strict=True)] for t in range(10)]
    for one, other in zip(zip(*alone, strict=True), together, strict=True):
        assert [tracks.masks for tracks in one] == [tracks.masks for tracks in other]


def test_without_detections_objects_are_propagated(parts: Parts) -> None:
    made = tracker(parts)
    first = made.step(frame(0), detections(make_scene(4, arrivals=False), 0))
    for t in range(1, 30):
        low = made.advance(frame(t), None)
        assert low.track_id.tolist() == first.track_id.tolist()
        assert len(low.withdrawn) == 0


def test_a_detector_that_finds_nothing_is_not_a_detector_that_did_not_run(parts: Parts) -> None:
    made = tracker(parts)
    made.step(frame(0), detections(make_scene(4, arrivals=False), 0))
    withdrawn = [made.advance(frame(t), Detections.empty()).withdrawn for t in range(1, 12)]
    assert sum(len(ids) for ids in withdrawn) > 0


def test_nothing_to_track_reads_no_features(parts: Parts) -> None:
    def unread(_: Frame) -> torch.Tensor:
        raise AssertionError("nobody needs them")

    made = Sam3MemoryTracker(parts, unread, TrackerConfig(), stream_id="s")
    assert len(made.step(frame(0), Detections.empty())) == 0
    assert len(made.step(frame(1), None)) == 0


def test_gaps_in_the_index_count_as_consecutive(parts: Parts) -> None:
    scene = make_scene(2)
    whole, gappy = tracker(parts), tracker(parts)
    for t in range(8):
        shifted = Frame("s", 10 * t, t / 2, np.zeros((2, 2, 3), np.uint8), SIZE)
        gappy._features = lambda _, t=t: features(frame(t))  # type: ignore[misc]
        a, b = whole.step(frame(t), detections(scene, t)), gappy.step(shifted, detections(scene, t))
        assert a.masks == b.masks
        assert b.index == 10 * t


def test_a_detection_with_a_broken_value_is_dropped_and_counted(parts: Parts) -> None:
    good = detections(make_scene(4, arrivals=False), 0)
    score, logits = good.score.copy(), good.mask_logits.copy()
    score[0], logits[1, 0, 0] = np.nan, np.inf
    made = tracker(parts)
    low = made.advance(frame(0), Detections(good.xyxy, score, good.prompt_id, logits))
    assert len(low.track_id) == len(good) - 2
    assert made.counters["nonfinite_detections"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_a_batch_takes_a_share_of_what_is_free(
    parts: Parts, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 2**30, 80 * 2**30))
    assert sam_heads._budget_bytes(torch.device("cuda")) == 2 * 2**30
    assert sam_heads._budget_bytes(torch.device("cpu")) == 2**26
    heads = SamHeads(parts.neck, copy.deepcopy(parts.model).to(dtype))
    per_object = 10 * (SIDE // 14) ** 2 * 128 * dtype.itemsize * 8
    heads.budget_bytes = 5 * per_object
    assert heads.max_rows == 5


@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_an_object_with_a_broken_mask_is_told_of_once(
    parts: Parts, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = tracker(parts, mode=mode)
    scene = make_scene(4, arrivals=False)
    ids = made.step(frame(0), detections(scene, 0)).track_id
    with caplog.at_level(logging.WARNING, logger="masklet"):
        for t, row in ((1, 1), (2, 0)):
            made._bank.pointer = made._bank.pointer.clone()
            made._bank.pointer[row] = float("nan")
            made.advance(frame(t), None)
    assert made.counters["non_finite"] == 2
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"s: the model returned NaN or infinity for object {ids[1]}: dropped")


def test_an_object_with_a_broken_mask_is_dropped_and_counted(parts: Parts) -> None:
    made = tracker(parts)
    scene = make_scene(4, arrivals=False)
    ids = made.step(frame(0), detections(scene, 0)).track_id.tolist()
    made._bank.pointer = made._bank.pointer.clone()
    made._bank.pointer[1] = float("nan")
    low = made.advance(frame(1), None)
    assert low.track_id.tolist() == [i for row, i in enumerate(ids) if row != 1]
    assert low.logits.isfinite().all()
    assert low.withdrawn.tolist() == []
    assert made.counters["non_finite"] == 1
    assert made.advance(frame(2), None).logits.isfinite().all()


def test_over_budget_keeps_the_best_and_warns_once(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    made = tracker(parts, max_objects=2)
    scene = make_scene(8, num_actors=4, arrivals=False)
    with caplog.at_level(logging.WARNING, logger="masklet"):
        for t in range(3):
            made.step(frame(t), detections(scene, t))
    assert made.counters["over_budget"] >= 2
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert len(made._lifecycle) == 2


def test_detections_of_another_size_and_boxes_alone(parts: Parts) -> None:
    found = make_scene(4, arrivals=False).detections(0, (64, 64))
    scaled = Detections(
        found.xyxy * np.float32([80 / 64, 60 / 64] * 2), found.score, found.prompt_id, found.mask_logits
    )
    boxes = Detections(scaled.xyxy, found.score, found.prompt_id, np.zeros((len(found), 1, 1), np.float32))
    masks, rectangles = (tracker(parts).step(frame(0), d) for d in (scaled, boxes))
    assert len(masks) == len(rectangles) == len(found)
    assert np.abs(masks.xyxy - rectangles.xyxy).max() <= 3


def test_half_precision_follows_the_same_objects(parts: Parts) -> None:
    half = Parts(neck=copy.deepcopy(parts.neck).to(torch.bfloat16), model=copy.deepcopy(parts.model).to(torch.bfloat16))
    scene = make_scene(4, arrivals=False)
    made = Sam3MemoryTracker(half, lambda f: features(f).to(torch.bfloat16), TrackerConfig(), stream_id="s")
    exact = tracker(parts)
    for t in range(6):
        found = detections(scene, t) if t == 0 else None
        low, full = made.advance(frame(t), found), exact.advance(frame(t), found)
        assert low.logits.dtype == torch.float32
        agree = ((low.logits > 0) == (full.logits > 0)).float().mean()
        assert agree > 0.9


def test_reconditioning_with_the_detected_mask_changes_memory(parts: Parts) -> None:
    scene = make_scene(4, arrivals=False)
    runs = []
    for how in ("tracked", "detected"):
        made = tracker(
            parts,
            recondition_every_frames=1,
            recondition_score=0.0,
            recondition_iou=0.0,
            recondition_with=how,
            fill_hole_area_px=16 * 81,  # given for masks of 288 px; here they are 32
        )
        runs.append([made.advance(frame(t), detections(scene, t)).logits for t in range(4)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][3], runs[1][3])


def test_appearances_tell_things_of_different_colours_apart(parts: Parts) -> None:
    """The same square of the picture in red and in blue; an id that is gone or never was is all zero."""
    image = np.zeros((LOW, LOW, 3), np.uint8)
    image[4:12, 4:12], image[4:12, 20:28] = (255, 0, 0), (0, 0, 255)
    logits = np.full((2, LOW, LOW), -8, np.float32)
    logits[0, 4:12, 4:12], logits[1, 4:12, 20:28] = 8, 8
    box = np.float32([[10, 7, 30, 22], [50, 7, 70, 22]])
    found = Detections(box, np.full(2, 0.9, np.float32), np.zeros(2, np.int16), logits)
    made = tracker(parts)
    ids = made.advance(Frame("s", 0, 0.0, image, SIZE), found).track_id
    looks = made.appearances(np.array([*ids, 99]))
    assert np.linalg.norm(looks, axis=1) == pytest.approx([1, 1, 0], abs=1e-5)
    assert looks[0] @ looks[1] < 0.7
    made.forget(ids[:1])
    assert not made.appearances(ids[:1]).any()
    assert np.array_equal(made.appearances(ids[1:]), looks[1:2])


@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_looks_that_nobody_asks_for_change_nothing(parts: Parts, mode: str, tmp_path: Path) -> None:
    scene = make_scene(5, num_actors=4, num_prompts=2)
    config = TrackerConfig(max_objects=8, mode=mode)
    asked, unasked = (
        Sam3MemoryTracker(parts, features, config, stream_id="s", keeps_looks=keeps) for keeps in (True, False)
    )
    for made in (asked, unasked):
        run(made, scene, range(6))
    for t in range(6, 12):
        a, b = (made.advance(frame(t), detections(scene, t)) for made in (asked, unasked))
        assert torch.equal(a.logits, b.logits) and a.track_id.tolist() == b.track_id.tolist()
        unasked.save(tmp_path)
        unasked = Sam3MemoryTracker(parts, features, config, stream_id="s")
        unasked.restore(tmp_path)
    unasked.forget(a.track_id[:1])
    assert asked.appearances(a.track_id).any()
    assert unasked.appearances(a.track_id).any() == (mode == "adaptive")
