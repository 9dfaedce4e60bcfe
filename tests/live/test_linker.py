"""Events and final rows: births, confirmations, losses, returns, retractions, ends; and nothing kept for ever."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.live.linker import Linked, LinkerConfig, LiveLinker, Seen
from pipeline.types import FrameTracks

CONFIG = LinkerConfig(delay_frames=0, probation_frames=4, lost_after_s=0.25, end_after_s=1.0)


def tracks(index: int, ids: Sequence[int], withdrawn: Sequence[int] = (), prompts: Sequence[int] = ()) -> FrameTracks:
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 2:5, 3:6] = True
    [rle] = mask_ops.encode(mask)
    n = len(ids)
    return FrameTracks(
        "cam",
        0,
        index,
        index / 10,
        np.array(ids, np.int64),
        np.array(prompts or [0] * n, np.int16),
        np.full(n, 0.5, np.float32),
        np.tile(np.array([[3, 2, 6, 5]], np.float32), (n, 1)),
        (rle,) * n,
        np.array(withdrawn, np.int64),
    )


def linker(config: LinkerConfig = CONFIG) -> LiveLinker:
    made = LiveLinker("cam", (8, 8), config)
    made.set_phrases(["cup", "ball"])
    return made


def feed(into: LiveLinker, frames: Sequence[FrameTracks]) -> list[tuple[int, str, int | None]]:
    out = [into.push(t, Seen(1000.0 + t.index, 0.0)) for t in frames]
    return [(e.frame, e.kind, e.masklet_id) for linked in out for e in linked.events]


def test_the_life_of_an_object_at_latency_zero() -> None:
    seen = [True] * 5 + [False] * 4 + [True] * 2 + [False] * 14
    frames = [tracks(k, [7] if here else []) for k, here in enumerate(seen)]
    assert feed(linker(), frames) == [
        (0, "born", 1),
        (3, "confirmed", 1),
        (7, "lost", 1),
        (9, "recovered", 1),
        (13, "lost", 1),
        (21, "ended", 1),
    ]


def test_what_is_taken_back_is_announced_at_latency_zero_and_never_seen_with_latency() -> None:
    frames = [tracks(0, [1]), tracks(1, [1, 2]), tracks(2, [1], withdrawn=[2]), tracks(3, [1]), tracks(4, [1])]
    assert (2, "retracted", 2) in feed(linker(), frames)
    delayed = linker(LinkerConfig(3, 3, 0.25, 1.0))
    out = [delayed.push(t, Seen(0.0, 0.0)) for t in frames] + [delayed.flush("end")]
    rows = [(r.result.index, r.result.masklet_id.tolist()) for linked in out for r in linked.results]
    assert rows == [(k, [1]) for k in range(5)]
    kinds = [(e.kind, e.masklet_id) for linked in out for e in linked.events]
    assert kinds == [("born", 1), ("confirmed", 1), ("ended", 1)]


def test_a_latency_shorter_than_probation_still_retracts() -> None:
    short = linker(LinkerConfig(2, 6, 0.25, 1.0))
    events = feed(short, [tracks(0, [1]), tracks(1, [1]), tracks(2, [1]), tracks(3, [], withdrawn=[1])])
    assert [kind for _, kind, _ in events] == ["born", "retracted"]


def test_ids_are_never_given_twice_and_forgotten_objects_leave_nothing_behind() -> None:
    stream = linker()
    ended: list[int] = []
    sizes = []
    for k in range(4000):
        alive = [k // 20, 100_000]
        linked = stream.push(tracks(k, sorted(alive)), Seen(float(k), 0.0))
        ended += linked.ended
        sizes.append(len(json.dumps(stream.state())))
    assert stream.num_masklets == 201
    assert ended == list(range(199))
    assert stream.num_lives <= 3
    assert max(sizes[3000:]) <= max(sizes[500:1000]) + 20


def test_end_is_held_off_while_a_frame_with_the_object_waits() -> None:
    stream = linker(LinkerConfig(8, 8, 0.25, 1.0))
    frames = [tracks(0, [1]), *(tracks(k, []) for k in range(1, 12)), *(tracks(k, [1]) for k in range(12, 30))]
    events = feed(stream, frames)
    assert [kind for _, kind, _ in events] == ["born", "confirmed", "lost", "recovered"]
    assert stream.num_masklets == 1


def test_a_phrase_that_is_taken_off_ends_its_objects_only() -> None:
    stream = linker(LinkerConfig(3, 3, 0.25, 1.0))
    feed(stream, [tracks(k, [1, 2], prompts=[0, 1]) for k in range(5)])
    linked = stream.set_phrases(["cup", "ball", "disc"], retired=[0])
    assert linked.ended == (1,)
    assert [(e.kind, e.masklet_id, e.prompt) for e in linked.events] == [("ended", 1, "cup")]
    out = [stream.push(tracks(k, [1, 2, 3], prompts=[0, 1, 2]), Seen(0.0, 0.0)) for k in range(5, 9)]
    rows = [(r.result.masklet_id.tolist(), r.result.prompt) for linked in out for r in linked.results]
    assert rows[0] == ([2], ("ball",))
    assert rows[-1] == ([2, 3], ("ball", "disc"))


@pytest.mark.parametrize("delay", [0, 3])
def test_saved_and_restored_goes_on_the_same(delay: int) -> None:
    config = LinkerConfig(delay, 4, 0.25, 1.0)
    rng = np.random.default_rng(0)
    frames = [tracks(k, sorted(set(rng.choice(6, 3).tolist()))) for k in range(60)]
    whole = linker(config)
    expected = [whole.push(t, Seen(float(t.index), 0.0)) for t in frames]
    first = linker(config)
    got = [first.push(t, Seen(float(t.index), 0.0)) for t in frames[:31]]
    second = LiveLinker("cam", (8, 8), config)
    second.restore(json.loads(json.dumps(first.state())), 0.0)
    second.adopt(0, {})
    got += [second.push(t, Seen(float(t.index), 0.0)) for t in frames[31:]]
    assert [_plain(g) for g in got] == [_plain(e) for e in expected]


def _plain(linked: Linked) -> object:
    rows = [(r.result.index, r.result.masklet_id.tolist(), r.result.rles, r.wall_s) for r in linked.results]
    return rows, linked.events, linked.ended


def test_numbers_given_out_after_the_save_are_kept_or_skipped() -> None:
    stream = linker(LinkerConfig(3, 3, 0.25, 1.0))
    feed(stream, [tracks(k, [1]) for k in range(4)] + [tracks(4, [1, 2]), tracks(5, [1, 2])])
    saved = json.loads(json.dumps(stream.state()))
    feed(stream, [tracks(k, [1, 2, 3]) for k in range(6, 12)])  # 2 becomes masklet 2, 3 becomes masklet 3
    after = LiveLinker("cam", (8, 8), LinkerConfig(3, 3, 0.25, 1.0))
    after.restore(saved, 0.0)
    after.adopt(3, {2: 2, 3: 3})
    out = [after.push(tracks(k, [1, 2, 3]), Seen(0.0, 0.0)) for k in range(20, 26)]
    rows = {r.result.index: r.result.masklet_id.tolist() for linked in out for r in linked.results}
    assert rows[4] == [1, 2]  # held when saved: the same object, the same number
    assert rows[21] == [1, 2, 4]  # track 3 is another object in the new process
