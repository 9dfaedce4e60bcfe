from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.schema import TrackerConfig
from pipeline.errors import RunError
from pipeline.link import ReleaseBuffer
from pipeline.masks import box_iou, decode
from pipeline.types import Detections, Frame, FrameTracks
from tests.scenes import make_scene
from trackers import kalman
from trackers.bytetrack import ByteTrackTracker

SIZE = (100, 120)


def frame(index: int, size: tuple[int, int] = SIZE) -> Frame:
    return Frame("s", index, index / 24, np.zeros((1, 1, 3), np.uint8), size)


def boxes(xyxy: list[list[float]] | NDArray[Any], score: float | list[float] = 0.9, prompt: int = 0) -> Detections:
    """Detections without masks."""
    n = len(xyxy)
    return Detections(
        np.array(xyxy, np.float32).reshape(n, 4),
        np.broadcast_to(np.array(score, np.float32), n).copy(),
        np.full(n, prompt, np.int16),
        np.zeros((n, 1, 1), np.float32),
    )


def tracker(**changes: Any) -> ByteTrackTracker:
    return ByteTrackTracker(TrackerConfig(**changes), stream_id="s")


def box_at(x: float, y: float = 20) -> list[float]:
    return [x, y, x + 20, y + 40]


def test_a_moving_box_keeps_its_id() -> None:
    made = tracker()
    shown = [made.step(frame(t), boxes([box_at(3 * t)])) for t in range(25)]
    assert [tracks.track_id.tolist() for tracks in shown] == [[1]] * 25
    assert shown[3].xyxy.tolist() == [[9, 20, 29, 60]]
    assert decode(shown[3].masks)[0].sum() == 800


def test_an_object_returns_under_its_id_after_a_gap_but_not_after_too_long_a_one() -> None:
    for gap, expected in ((10, 1), (31, 2)):
        made = tracker()
        for t in range(10):
            made.step(frame(t), boxes([box_at(30)]))
        for t in range(10, 10 + gap):
            assert len(made.step(frame(t), boxes([]))) == 0
        assert made.step(frame(10 + gap), boxes([box_at(30)])).track_id.tolist() == [expected]


def test_a_weak_detection_carries_a_track_on_but_starts_none() -> None:
    made = tracker()
    for t in range(4):
        made.step(frame(t), boxes([box_at(30)]))
    assert made.step(frame(4), boxes([box_at(30), box_at(80)], 0.5)).track_id.tolist() == [1]


def test_what_the_next_frame_does_not_confirm_is_withdrawn() -> None:
    made = tracker()
    made.step(frame(0), boxes([box_at(10)]))
    assert made.step(frame(1), boxes([box_at(10), box_at(80)])).track_id.tolist() == [1, 2]
    third = made.step(frame(2), boxes([box_at(10)]))
    assert third.track_id.tolist() == [1]
    assert third.withdrawn.tolist() == [2]
    assert made.step(frame(3), boxes([box_at(10), box_at(80)])).track_id.tolist() == [1, 3]


def test_phrases_do_not_mix() -> None:
    made = tracker()
    made.step(frame(0), boxes([box_at(10)], prompt=0))
    assert made.step(frame(1), boxes([box_at(10)], prompt=1)).track_id.tolist() == [2]


def test_a_lost_box_does_not_take_a_detection_from_its_visible_owner() -> None:
    made = tracker()
    for t in range(8):
        made.step(frame(t), boxes([box_at(20), box_at(70)]))
    for t in range(8, 16):
        made.step(frame(t), boxes([box_at(20 + 6 * (t - 7))]))  # walks to where the second was lost
    assert made.step(frame(16), boxes([box_at(71)])).track_id.tolist() == [1]


def test_without_detections_boxes_move_on() -> None:
    made = tracker()
    for t in range(10):
        made.step(frame(t), boxes([box_at(5 * t)]))
    for t in range(10, 14):
        assert len(made.step(frame(t), None)) == 0
    assert made.step(frame(14), boxes([box_at(70)])).track_id.tolist() == [1]


def test_masks_are_the_detections_own() -> None:
    scene = make_scene(4, arrivals=False)
    found = scene.detections(0, (50, 60))
    scaled = Detections(found.xyxy * 2, found.score, found.prompt_id, found.mask_logits)
    shown = tracker().step(frame(0), scaled)
    exact = scene.masks(0, SIZE)
    for mask in decode(shown.masks):
        assert max((mask & m).sum() / (mask | m).sum() for m in exact) > 0.85


def test_over_budget_and_broken_values() -> None:
    made = tracker(max_objects=1)
    found = boxes([box_at(10), box_at(40), box_at(80)], [0.8, 0.95, np.nan])
    assert made.step(frame(0), found).xyxy.tolist() == [[40, 20, 60, 60]]
    assert made.counters == {"over_budget": 1, "nonfinite_detections": 1}


def test_a_box_outside_the_picture_is_not_shown() -> None:
    assert len(tracker().step(frame(0), boxes([[-50, -50, -10, -10]]))) == 0


def test_restored_continues_equal(tmp_path: Path) -> None:
    scene = make_scene(5, num_actors=6, num_prompts=2)
    whole, resumed = tracker(), tracker()
    for t in range(12):
        whole.step(frame(t), scene.detections(t, SIZE))
    whole.save(tmp_path)
    resumed.restore(tmp_path)
    for t in range(12, 30):
        a, b = (made.step(frame(t), scene.detections(t, SIZE)) for made in (whole, resumed))
        assert (a.track_id.tolist(), a.masks) == (b.track_id.tolist(), b.masks)
    with pytest.raises(RunError):
        tracker().restore(tmp_path / "nothing")


def test_state_does_not_grow() -> None:
    made = tracker()
    rng = np.random.default_rng(0)
    for t in range(400):
        made.step(frame(t), boxes([box_at(20), box_at(float(rng.uniform(0, 90)), float(rng.uniform(0, 50)))]))
        assert len(made._tracks) <= 40


def test_kalman_follows_constant_velocity() -> None:
    path = np.array([[10 + 3 * t, 20 - t, 30 + 3 * t, 60 - t] for t in range(40)], float)
    mean, covariance = kalman.begin(kalman.measure(path[:1]))
    for box in path[1:]:
        mean, covariance = kalman.predict(mean, covariance)
        mean, covariance = kalman.update(mean, covariance, kalman.measure(box[None]))
    mean, _ = kalman.predict(mean, covariance)
    expected = path[-1] + [3, -1, 3, -1]
    np.testing.assert_allclose(kalman.boxes_of(mean)[0], expected, atol=0.2)


def test_needs_no_torch() -> None:
    code = "import sys, trackers.bytetrack; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


MOT15 = Path(os.environ.get("MASKLET_TEST_DATA", "/nonexistent")) / "mot15"


@pytest.mark.skipif(not MOT15.is_dir(), reason="MASKLET_TEST_DATA/mot15 is not there")
@pytest.mark.parametrize(
    ("sequence", "hota", "idf1"),
    # What roboflow `trackers` 2.6.1 ByteTrack reaches on the same detections (its defaults, TrackEval 1.3.0).
    [("KITTI-17", 0.460, 0.703), ("TUD-Campus", 0.468, 0.603), ("TUD-Stadtmitte", 0.528, 0.760)],
)
def test_is_as_good_as_roboflow_trackers_on_real_detections(sequence: str, hota: float, idf1: float) -> None:
    rows = np.loadtxt(MOT15 / sequence / "det/det_sort_frcnn.txt", delimiter=",")
    got = _evaluate(sequence, _follow(sequence, rows))
    assert got["HOTA"] >= hota
    assert got["IDF1"] >= idf1


@pytest.mark.skipif(not MOT15.is_dir(), reason="MASKLET_TEST_DATA/mot15 is not there")
@pytest.mark.parametrize("sequence", ["KITTI-17", "TUD-Campus", "TUD-Stadtmitte"])
def test_true_boxes_are_linked(sequence: str) -> None:
    rows = _ground_truth(sequence)
    rows[:, 6] = 1
    shuffled = rows[np.random.default_rng(1).permutation(len(rows))]
    assert _evaluate(sequence, _follow(sequence, shuffled))["HOTA"] >= 0.93


def _ground_truth(sequence: str) -> NDArray[np.float64]:
    rows = np.loadtxt(MOT15 / sequence / "gt/gt.txt", delimiter=",")
    return np.asarray(rows[rows[:, 6] != 0])


def _xyxy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)


def _follow(sequence: str, rows: NDArray[np.float64]) -> list[FrameTracks]:
    ini = configparser.ConfigParser()
    ini.read(MOT15 / sequence / "seqinfo.ini")
    info = ini["Sequence"]
    size = (int(info["imHeight"]), int(info["imWidth"]))
    made, buffer = tracker(), ReleaseBuffer(TrackerConfig().hotstart_delay_frames)
    out: list[FrameTracks] = []
    for t in range(int(info["seqLength"])):
        now = rows[rows[:, 0] == t + 1]
        out += buffer.push(made.step(frame(t, size), boxes(_xyxy(now), now[:, 6].tolist())))
    return out + buffer.flush()


def _evaluate(sequence: str, result: list[FrameTracks]) -> dict[str, float]:
    from trackeval.metrics import HOTA, Identity

    truth = _ground_truth(sequence)
    ids: tuple[dict[int, int], dict[int, int]] = ({}, {})
    data: dict[str, Any] = {"gt_ids": [], "tracker_ids": [], "similarity_scores": []}
    for tracks in result:
        now = truth[truth[:, 0] == tracks.index + 1]
        for key, known, found in (("gt_ids", ids[0], now[:, 1]), ("tracker_ids", ids[1], tracks.track_id)):
            data[key].append(np.array([known.setdefault(int(i), len(known)) for i in found], int))
        data["similarity_scores"].append(box_iou(_xyxy(now), tracks.xyxy))
    data |= {
        "num_gt_ids": len(ids[0]),
        "num_tracker_ids": len(ids[1]),
        "num_gt_dets": sum(map(len, data["gt_ids"])),
        "num_tracker_dets": sum(map(len, data["tracker_ids"])),
        "num_timesteps": len(result),
    }
    hota, identity = HOTA().eval_sequence(data), Identity({"PRINT_CONFIG": False}).eval_sequence(data)
    return {"HOTA": float(hota["HOTA"].mean()), "IDF1": float(identity["IDF1"])}
