"""Adaptive mode on a random model: what runs when, identities, bounded state, running out of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from pipeline.errors import DeviceError, RunError
from pipeline.types import Detections, Frame
from tests import tinyconf
from trackers.attention_plan import Reason
from trackers.sam3_memory import Sam3MemoryTracker
from trackers.sam_heads import Decoded

SIDE, LOW = 112, 32
RED, BLUE = (255, 0, 0), (0, 0, 255)
Thing = tuple[int, int, tuple[int, int, int]]
"""Left, top and colour of an 8 px square."""


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    torch.set_num_threads(1)
    config = tinyconf.tracker_config(SIDE, 128)
    both = nn.ModuleDict(
        {
            "neck": Sam3VisionNeck(config.vision_config),
            "model": Sam3TrackerVideoModel(config, remove_vision_encoder=True),
        }
    )
    tinyconf.randomize(both, 0)
    return SimpleNamespace(neck=both["neck"], model=both["model"])


class Watched:
    """A tracker that notes how often its networks ran, and on how many objects."""

    def __init__(self, parts: SimpleNamespace, **changes: Any) -> None:
        config = TrackerConfig(**{"mode": "adaptive", "refresh_every_frames": 8} | changes)
        self.tracker = Sam3MemoryTracker(parts, _features, config, stream_id="s")
        self.rows: dict[str, list[int]] = {"attention": [], "neck": [], "begin": []}
        heads = self.tracker._heads
        self._watch(heads, "_read", "attention", lambda _, reading: len(reading.rows))
        self._watch(heads, "vision", "neck", lambda _: 1)
        self._watch(heads, "_begun", "begin", lambda *given: len(given[-1]))

    def _watch(self, heads: Any, method: str, name: str, size: Callable[..., int]) -> None:
        inner = getattr(heads, method)

        def watched(*args: Any) -> Any:
            self.rows[name].append(size(*args))
            return inner(*args)

        setattr(heads, method, watched)

    def run(self, frames: Sequence[Sequence[Thing]], start: int = 0) -> list[dict[int, Thing]]:
        """Per frame which id is on which thing."""
        seen = []
        for t, things in enumerate(frames, start):
            low = self.tracker.advance(_frame(t, things), _detections(things))
            found = {}
            for track, mask in zip(low.track_id.tolist(), low.logits, strict=True):
                ys, xs = np.nonzero(mask.numpy() > 0)
                found[track] = next((x for x in things if (x[0], x[1]) == (xs.min(), ys.min())), (-1, -1, RED))
            seen.append(found)
        return seen


def _features(frame: Frame) -> torch.Tensor:
    """The same everywhere: looks are told by colour alone."""
    return torch.ones(1, (SIDE // 14) ** 2, 64)


def _frame(t: int, things: Sequence[Thing]) -> Frame:
    image = np.full((LOW, LOW, 3), 90, np.uint8)
    for x, y, colour in things:
        image[y : y + 8, x : x + 8] = colour
    return Frame("s", t, t / 24, image, (LOW, LOW))


def _detections(things: Sequence[Thing]) -> Detections:
    logits = np.full((len(things), LOW, LOW), -8, np.float32)
    for mask, (x, y, _) in zip(logits, things, strict=True):
        mask[y : y + 8, x : x + 8] = 8
    xyxy = np.array([(x, y, x + 8, y + 8) for x, y, _ in things], np.float32).reshape(-1, 4)
    return Detections(xyxy, np.full(len(things), 0.9, np.float32), np.zeros(len(things), np.int16), logits)


def still(*things: Thing, frames: int) -> list[list[Thing]]:
    return [list(things)] * frames


FOUR: tuple[Thing, ...] = ((1, 1, RED), (20, 1, BLUE), (1, 20, BLUE), (20, 20, RED))


def test_easy_objects_rest_and_are_refreshed_in_turn(parts: SimpleNamespace) -> None:
    made = Watched(parts)
    seen = made.run(still(*FOUR, frames=33))
    assert all(frame == seen[0] for frame in seen)
    assert sum(made.rows["attention"]) == 4 * 4, "each of four objects every 8 of 32 frames"
    assert max(made.rows["attention"]) == 1, "ids in a row fall on different frames"
    assert made.tracker.counters == {"attended": 16, "rested": 4 * 32 - 16}
    assert len(made.rows["neck"]) <= 1 + 2 * 16, "only where somebody is born or attends"


def test_reasons_are_told(parts: SimpleNamespace) -> None:
    made = Watched(parts)
    made.run(still(*FOUR, frames=2))
    weak = _detections(FOUR)
    score = weak.score.copy()
    score[2] = 0.55
    low = made.tracker.advance(_frame(2, FOUR), Detections(weak.xyxy, score, weak.prompt_id, weak.mask_logits))
    assert low.reason is not None
    assert low.reason.tolist() == [Reason.RESTS, Reason.RESTS, Reason.WEAK, Reason.RESTS]


def test_an_object_behind_a_screen_keeps_its_id(parts: SimpleNamespace) -> None:
    """It moves 1 px a frame, is out of sight for ten frames; another one of its colour stays."""
    path = [(0, 4, RED)] * 12 + [(x, 4, RED) for x in range(24)]
    frames = [[(4, 20, RED), *([thing] if not 19 <= t < 29 else [])] for t, thing in enumerate(path)]
    seen = Watched(parts).run(frames)
    assert seen[18][2] == path[18]
    assert all(2 not in seen[t] or seen[t][2] == (-1, -1, RED) for t in range(19, 29))
    assert [seen[t].get(2) for t in range(29, 36)] == path[29:]
    assert max(max(frame) for frame in seen) == 2


def test_an_object_that_comes_out_edge_first_keeps_its_id(parts: SimpleNamespace) -> None:
    """It moves 1 px a frame behind a screen from 14 to 27 px: what is last seen of it is a sliver, and first too."""
    watched = Watched(parts)
    watched.run([[(0, 20, RED)]] * 6)
    for t in range(24):
        things = [(t, 20, RED)]
        found = _detections(things)
        found.mask_logits[:, :, 14:27] = -10
        is_seen = bool((found.mask_logits > 0).any())
        low = watched.tracker.advance(_frame(6 + t, things), found if is_seen else _detections([]))
        if is_seen:
            assert low.track_id.tolist() == [1], f"at {t} px"


@pytest.mark.parametrize("skipped", [0, 8, 60])
def test_an_object_that_was_far_along_when_the_frames_came_again(
    parts: SimpleNamespace, tmp_path: Path, skipped: int
) -> None:
    """Frames that never came make nobody older than ``lost_frames``, and the saved state knows of them."""
    before, after = [(1, 1, RED), (1, 20, BLUE)], [(22, 8, RED), (20, 20, BLUE)]
    made = Watched(parts, lost_frames=10)
    made.run(still(*before, frames=12))
    if skipped:
        made.tracker.skip(skipped)
    made.tracker.save(tmp_path)
    again = Watched(parts, lost_frames=10)
    again.tracker.restore(tmp_path)
    seen = again.run(still(*after, frames=3), start=12)
    assert [sorted(frame) for frame in seen[1:]] == ([[1, 2]] * 2 if skipped else [[3, 4]] * 2)
    if skipped:
        assert seen[-1] == {1: after[0], 2: after[1]}
        assert not again.tracker._adaptive.trajectories.skipped.any()  # type: ignore[union-attr]


def test_what_comes_in_another_colour_is_another_object(parts: SimpleNamespace) -> None:
    frames = still((12, 12, RED), frames=12) + still(frames=6) + still((12, 12, BLUE), frames=6)
    assert list(Watched(parts).run(frames)[-1]) == [2]


def test_different_colours_keep_their_ids_when_one_passes_in_front(parts: SimpleNamespace) -> None:
    """Blue passes red, which is hidden behind it for some frames."""
    frames = []
    for t in range(36):
        red, blue = (10, 10, RED), (max(t - 14, 0), 10, BLUE)
        hides = abs(red[0] - blue[0]) < 8
        frames.append([thing for thing in (red, blue) if not (hides and thing is red)])
    seen = Watched(parts).run(frames)
    blue_id = next(i for i, thing in seen[8].items() if thing[2] == BLUE)
    for t in range(36):
        for i, thing in seen[t].items():
            if thing[0] >= 0:
                assert (i == blue_id) == (thing[2] == BLUE), f"frame {t}"
    assert len(seen[-1]) == 2


def test_twins_that_touch_and_are_found_as_one_stay_two(parts: SimpleNamespace) -> None:
    """They meet, one detection covers both for ten frames, and they part again; attention finds each of them."""
    together = [*range(9), *[8] * 10, *range(8, -1, -1)]
    pairs: list[list[Thing]] = [[(x, 12, RED), (24 - x, 12, RED)] for x in together]
    watched = Watched(parts)
    heads = watched.tracker._heads
    propagate, now = heads.propagate, [0]

    def knows(vision: Any, bank: Any, step: int, rows: Any) -> Decoded:
        found = propagate(vision, bank, step, rows)
        logits = torch.from_numpy(_detections(pairs[now[0]]).mask_logits)[torch.from_numpy(rows)]
        return Decoded(logits, torch.full_like(found.object_logit, 5.0), found.pointer)

    heads.propagate = knows  # type: ignore[method-assign]
    for t, pair in enumerate(pairs):
        now[0], found = t, _detections(pair)
        if pair[0][0] == 8:
            mask = found.mask_logits.max(0, keepdims=True)
            found = Detections(np.float32([[8, 12, 24, 20]]), found.score[:1], found.prompt_id[:1], mask)
        low = watched.tracker.advance(_frame(t, pair), found)
        assert low.track_id.tolist() == [1, 2], f"frame {t}"
        for (x, y, _), mask in zip(pair, low.logits > 0, strict=True):
            assert mask.sum() == 64 and mask[y : y + 8, x : x + 8].all(), f"frame {t}"


@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_what_attention_finds_has_no_specks(parts: SimpleNamespace, mode: str) -> None:
    """It says that there is a pinhole, and a speck elsewhere: neither is shown. 81 of 288 x 288 pixels are one here."""
    watched = Watched(parts, mode=mode, fill_hole_area_px=81)
    watched.tracker.advance(_frame(0, FOUR[:1]), _detections(FOUR[:1]))
    heads = watched.tracker._heads
    propagate = heads.propagate

    def blotted(*given: Any) -> Decoded:
        found = propagate(*given)
        logits = torch.from_numpy(_detections(FOUR[:1]).mask_logits)
        logits[:, 4, 4], logits[:, 28, 28] = -8, 8
        return Decoded(logits, torch.full_like(found.object_logit, 5.0), found.pointer)

    heads.propagate = blotted  # type: ignore[method-assign]
    low = watched.tracker.advance(_frame(1, FOUR[:1]), None)
    assert torch.equal(low.logits > 0, torch.from_numpy(_detections(FOUR[:1]).mask_logits) > 0)


def test_what_looks_unlike_the_thing_in_its_place_is_no_newcomer_yet(parts: SimpleNamespace) -> None:
    watched = Watched(parts)
    watched.run(still((4, 12, RED), frames=3))
    assert list(watched.run(still((7, 12, BLUE), frames=1), start=3)[0]) in ([], [1])
    assert 2 in watched.run(still((7, 12, BLUE), frames=2), start=4)[1]


def test_what_left_is_hidden_soon_sleeps_and_ends(parts: SimpleNamespace) -> None:
    made = Watched(parts, hide_after_frames=3, lost_frames=10)
    made.run(still(*FOUR[:2], frames=20))
    seen = made.run(still(FOUR[0], frames=20), start=20)
    assert all(2 not in frame for frame in seen[3:])
    assert made.tracker.counters["slept"] == 10 - 3
    assert made.tracker.counters["ended"] == 1
    assert len(made.tracker._bank) == 1
    assert not made.tracker.appearances(np.array([2])).any()


def test_state_is_bounded(parts: SimpleNamespace) -> None:
    """Objects that move, so that memory is written; bytes, rows and calls per frame do not grow with time."""
    made = Watched(parts)
    frames = [[(1 + t // 2 % 4, 1, RED), (20, 20 - t // 2 % 4, BLUE)] for t in range(240)]
    made.run(frames[:60])
    early, calls = made.tracker.num_state_bytes, {name: len(rows) for name, rows in made.rows.items()}
    made.run(frames[60:], start=60)
    assert abs(made.tracker.num_state_bytes - early) <= 100, "but for the digits of counters"
    assert len(made.tracker._bank) == 2
    for name, before in calls.items():
        assert len(made.rows[name]) <= 4 * before + 8, name


def test_restored_continues_bit_equal(parts: SimpleNamespace, tmp_path: Path) -> None:
    """Saved while memories are pending and one object is out of sight."""
    rng = np.random.default_rng(0)
    frames = []
    for t in range(40):
        things = [(1 + t % 5, 1, RED), (20, 1 + t % 7, BLUE), (1 + t % 3, 20, BLUE), (20, 20, RED)]
        frames.append([thing for thing in things if rng.random() > 0.2])
    whole, resumed = Watched(parts), Watched(parts)
    whole.run(frames[:20])
    assert whole.tracker._adaptive is not None
    assert whole.tracker._adaptive.hidden is not None
    whole.tracker.save(tmp_path)
    resumed.tracker.restore(tmp_path)
    for t in range(20, 40):
        a, b = (w.tracker.advance(_frame(t, frames[t]), _detections(frames[t])) for w in (whole, resumed))
        assert torch.equal(a.logits, b.logits)
        assert a.track_id.tolist() == b.track_id.tolist()
        assert a.score.tobytes() == b.score.tobytes()
    assert whole.tracker.counters == resumed.tracker.counters
    assert whole.rows["attention"][-5:] == resumed.rows["attention"][-5:]


def test_a_state_of_the_other_mode_is_refused(parts: SimpleNamespace, tmp_path: Path) -> None:
    Watched(parts, mode="exact").tracker.save(tmp_path)
    with pytest.raises(RunError, match="mode exact, expected adaptive"):
        Watched(parts).tracker.restore(tmp_path)


def test_without_detector_everyone_attends_and_nobody_ages(parts: SimpleNamespace) -> None:
    made = Watched(parts, hide_after_frames=1, lost_frames=2)
    made.run(still(*FOUR, frames=3))
    for t in range(3, 12):
        made.tracker.advance(_frame(t, FOUR), None)
    assert made.rows["attention"][-1] == 4
    assert list(made.run(still(*FOUR, frames=1), start=12)[0]) == [1, 2, 3, 4]


def test_nothing_at_all_reads_no_features(parts: SimpleNamespace) -> None:
    made = Watched(parts)
    made.tracker._features = lambda _: pytest.fail("nobody needs them")
    assert made.run(still(frames=3)) == [{}, {}, {}]


@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_out_of_memory_halves_the_batch(parts: SimpleNamespace, mode: str) -> None:
    """A device that takes one object at a time: results stay those of all at once, and it is not asked again."""
    free, tight = Watched(parts, mode=mode), Watched(parts, mode=mode)
    refused = _refuse(tight.tracker, most=1)
    for t in range(6):
        a, b = (w.tracker.advance(_frame(t, FOUR), _detections(FOUR) if t < 3 else None) for w in (free, tight))
        assert a.track_id.tolist() == b.track_id.tolist()
        torch.testing.assert_close(a.logits, b.logits, atol=1e-3, rtol=0)
    assert refused == [4, 2]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None])
def test_no_memory_for_a_single_object(parts: SimpleNamespace, error: Exception | None) -> None:
    made = Watched(parts)
    _refuse(made.tracker, most=0, error=error)
    with pytest.raises(DeviceError, match=r"out of memory with one object at a time .*: free the device"):
        made.run(still(*FOUR, frames=1))


def test_other_faults_of_the_model_are_not_taken_for_lack_of_memory(parts: SimpleNamespace) -> None:
    made = Watched(parts)
    _refuse(made.tracker, most=0, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        made.run(still(*FOUR, frames=1))


def _refuse(tracker: Sam3MemoryTracker, most: int, error: Exception | None = None) -> list[int]:
    """Let the allocator fail for batches of more than ``most`` objects; returns the sizes it refused."""
    refused: list[int] = []
    encode = tracker._heads._encode

    def failing(vision: Any, inside: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        if len(inside) > most:
            refused.append(len(inside))
            raise error or RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes")
        return encode(vision, inside, present)

    tracker._heads._encode = failing  # type: ignore[method-assign]
    return refused
