"""The camera worker: fair, batched, each camera failing alone, gaps, sessions, phrases, state."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from configs.schema import LiveConfig
from pipeline.live.checkpoint import Marks, Past, drop_state, saved_phrases
from pipeline.live.exemplars import Exemplars
from pipeline.live.linker import LinkerConfig
from pipeline.sources.live import LiveFrame, LiveSource, Lost, State, _Reader
from pipeline.sources.live_open import CameraSpec
from pipeline.types import Frame, Prompts
from tests.live.fakes import ColourDetector, NearestTracker, prompts_of
from tests.live.rtsp_server import picture
from workers import camera_worker
from workers.camera_worker import CameraOutput, CameraWorker

CONFIG = LinkerConfig(delay_frames=0, probation_frames=5, lost_after_s=0.3, end_after_s=2.0)


class Script:
    """A camera that gives what it is told: frames at given times, gaps, losses."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.state, self.is_paused, self.is_stopped = State.LIVE, False, False
        self.waiting: deque[LiveFrame] = deque()
        self.losses: deque[Lost] = deque()
        self.next_index = 0
        self.resumed: tuple[int, float, float, tuple[int, int] | None] | None = None
        self.start_wall_s = time.time()

    def film(self, count: int = 1, gap_s: float | None = None) -> None:
        for k in range(count):
            t_s = self.next_index / 10
            image = picture(96, 96, t_s, 0)
            frame = Frame(self.stream_id, self.next_index, t_s, image, (192, 320))
            self.waiting.append(LiveFrame(frame, self.start_wall_s + t_s, time.monotonic(), gap_s if k == 0 else None))
            self.next_index += 1

    def poll(self) -> Lost | None:
        return self.losses.popleft() if self.losses else None

    def take(self) -> LiveFrame | None:
        return self.waiting.popleft() if self.waiting and not self.is_paused else None

    def stop(self) -> None:
        self.is_stopped = True

    def resume(self, next_index: int, pts_s: float, wall_s: float, source_size: tuple[int, int] | None) -> None:
        self.resumed = (next_index, pts_s, wall_s, source_size)
        self.next_index = next_index


class Bench:
    """A worker with scripted cameras, and all it said."""

    def __init__(
        self,
        *names: str,
        batch: int = 4,
        folder: Path | None = None,
        max_gap_s: float = 5.0,
        exemplars: Exemplars | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.detector = ColourDetector()
        self.trackers: list[NearestTracker] = []
        self.worker = CameraWorker(
            self.detector, self._tracker, CONFIG, batch_frames=batch, max_gap_s=max_gap_s, exemplars=exemplars
        )
        self.cameras = {name: Script(name) for name in names}
        self.outputs: list[CameraOutput] = []
        prompts = prompts or prompts_of(["red disc", "blue disc"])
        for name, camera in self.cameras.items():
            self.outputs.append(self.worker.add(name, camera, prompts, folder / name if folder else None))

    def _tracker(self, stream_id: str, session: int) -> NearestTracker:
        self.trackers.append(NearestTracker(stream_id, session))
        return self.trackers[-1]

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            outputs, _ = self.worker.step()
            self.outputs += outputs

    def rows(self, name: str) -> dict[int, list[int]]:
        return {
            r.result.index: r.result.masklet_id.tolist() for o in self.outputs for r in o.results if o.stream_id == name
        }

    def events(self, name: str) -> list[tuple[str, int | None]]:
        return [(e.kind, e.masklet_id) for o in self.outputs for e in o.events if o.stream_id == name]


def test_cameras_share_detector_calls_and_take_turns() -> None:
    bench = Bench("a", "b", "c", batch=2)
    for camera in bench.cameras.values():
        camera.film(20)
    bench.step(15)
    counts = [len(bench.rows(name)) for name in "abc"]
    assert counts == [10, 10, 10]
    assert all(len(batch) == 2 for batch in bench.detector.batches)


def test_cameras_with_other_phrases_are_asked_for_theirs() -> None:
    bench = Bench("a", "b")
    bench.worker.set_prompts("b", prompts_of(["green disc"]))
    for camera in bench.cameras.values():
        camera.film(2)
    bench.step(2)
    phrases = {o.stream_id: set(r.result.prompt) for o in bench.outputs for r in o.results}
    assert phrases == {"a": {"red disc", "blue disc"}, "b": {"green disc"}}


def test_a_short_gap_keeps_ids_and_a_long_one_does_not() -> None:
    bench = Bench("a")
    camera = bench.cameras["a"]
    camera.film(8)
    bench.step(8)
    camera.losses.append(Lost("the stream ended", False))
    bench.step()
    camera.film(3, gap_s=2.0)
    bench.step(3)
    assert bench.rows("a")[10] == [1, 2]
    camera.losses.append(Lost("the stream ended", False))
    bench.step()
    camera.film(3, gap_s=60.0)
    bench.step(3)
    assert bench.rows("a")[13] == [3, 4]
    kinds = [kind for kind, _ in bench.events("a")]
    assert kinds.count("stream_gap") == kinds.count("stream_reconnected") == 2
    assert kinds.count("ended") == 2
    assert bench.worker.cameras["a"].linker.session == 1  # type: ignore[union-attr]


def test_a_session_ends_by_itself_when_the_gap_grows_too_long() -> None:
    bench = Bench("a", max_gap_s=0.05)
    bench.cameras["a"].film(2)
    bench.step(2)
    bench.cameras["a"].losses.append(Lost("the stream ended", False))
    bench.step()
    assert ("ended", 1) not in bench.events("a")
    time.sleep(0.1)
    bench.step()
    assert ("ended", 1) in bench.events("a")


def test_one_camera_fails_alone_and_starts_afresh(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench("a", "b")
    for camera in bench.cameras.values():
        camera.film(12)
    bench.step(2)
    bench.trackers[0].fail_on = 3
    bench.step(10)
    assert sorted(bench.rows("b")) == list(range(12))
    assert sorted(bench.rows("a")) == [k for k in range(12) if k != 3]
    assert bench.rows("a")[11] == [3, 4]
    assert bench.worker.cameras["a"].stats.failures == 1
    assert [k for k, _ in bench.events("a")].count("stream_gap") == 1
    assert "made to fail" in caplog.text


def test_a_camera_that_fails_for_good_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("workers.camera_worker.time.monotonic", lambda: now_s[0])
    bench = Bench("a", "b")
    make = bench.worker._make_tracker

    def broken(stream_id: str, session: int) -> NearestTracker:
        tracker = make(stream_id, session)
        assert isinstance(tracker, NearestTracker)
        tracker.fail_on = 0 if stream_id == "a" else None
        return tracker

    bench.worker._make_tracker = broken
    for camera in bench.cameras.values():
        camera.film(200)
    for _ in range(200):
        bench.step()
        now_s[0] += 0.1
    assert len(bench.rows("b")) == 200
    assert 5 <= bench.worker.cameras["a"].stats.failures <= 12  # 20 s, not 200 tries
    assert sum("the tracker failed" in r.getMessage() for r in caplog.records) == 1
    ids = [e.event_id for o in bench.outputs for e in o.events]
    assert len(set(ids)) == len(ids)


def test_a_source_or_a_box_that_raises_costs_one_camera(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench("a", "b")

    class Boxes:
        missing = (0,)

        def see(self, frame: Frame) -> bool:
            if frame.stream_id == "a":
                raise ValueError("bad box")
            return False

        def applied(self, prompts: Prompts) -> Prompts:
            return prompts

    bench.worker._exemplars = Boxes()  # type: ignore[assignment]
    poll = bench.cameras["a"].poll

    def bad() -> Lost | None:
        if bench.cameras["a"].next_index == 10:
            raise RuntimeError("bad poll")
        return poll()

    bench.cameras["a"].poll = bad  # type: ignore[method-assign]
    for camera in bench.cameras.values():
        camera.film(10)
    bench.step(12)
    assert len(bench.rows("b")) == 10
    assert bench.worker.cameras["a"].stats.failures > 0
    assert "bad poll" in caplog.text or "bad box" in caplog.text


def test_a_silence_that_nobody_announced_is_a_gap_and_a_return() -> None:
    bench = Bench("a")
    bench.cameras["a"].film(5)
    bench.cameras["a"].film(5, gap_s=1.5)
    bench.step(10)
    events = [e for o in bench.outputs for e in o.events if e.kind.startswith("stream")]
    assert [(e.kind, e.detail) for e in events] == [
        ("stream_gap", "no frame for 1.5 s"),
        ("stream_reconnected", "ids go on"),
    ]
    assert bench.rows("a")[9] == [1, 2]


def test_a_picture_the_detector_cannot_take_costs_one_camera_one_frame(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench("a", "b")
    for camera in bench.cameras.values():
        camera.film(3)
    one = bench.detector._one

    def picky(frame: Frame, prompts: object) -> object:
        if (frame.stream_id, frame.index) == ("a", 1):
            raise ValueError("bad frame")
        return one(frame, prompts)  # type: ignore[arg-type]

    bench.detector._one = picky  # type: ignore[assignment, method-assign]
    bench.step(3)
    assert sorted(bench.rows("b")) == [0, 1, 2]
    assert sorted(bench.rows("a")) == [0, 2]


def test_phrases_change_without_touching_the_others() -> None:
    bench = Bench("a")
    bench.cameras["a"].film(30)
    bench.step(10)
    bench.outputs.append(bench.worker.set_prompts("a", prompts_of(["green disc", "blue disc"])))
    bench.step(10)
    last = bench.outputs[-1].results[-1].result
    assert dict(zip(last.prompt, last.masklet_id.tolist(), strict=True)) == {"blue disc": 2, "green disc": 3}
    assert ("ended", 1) in bench.events("a")
    assert all(t["prompt"] != 0 for t in bench.trackers[0].tracks.values())
    bench.worker.set_prompts("a", prompts_of(["blue disc", "red disc"]))
    bench.step(10)
    last = bench.outputs[-1].results[-1].result
    assert dict(zip(last.prompt, last.masklet_id.tolist(), strict=True)) == {"blue disc": 2, "red disc": 4}


def test_pause_is_a_gap_that_keeps_ids() -> None:
    bench = Bench("a")
    bench.cameras["a"].film(5)
    bench.step(5)
    bench.outputs.append(bench.worker.pause("a", True))
    bench.cameras["a"].film(5, gap_s=0.5)
    bench.step(3)
    assert len(bench.rows("a")) == 5
    bench.worker.pause("a", False)
    bench.step(5)
    assert bench.rows("a")[9] == [1, 2]
    assert [k for k, _ in bench.events("a")][-2:] == ["stream_gap", "stream_reconnected"]


def test_a_restarted_worker_goes_on_with_the_same_ids(tmp_path: Path) -> None:
    first = Bench("a", folder=tmp_path)
    first.cameras["a"].film(20)
    first.step(10)
    first.worker.save("a")()
    first.step(10)  # then the process dies: frames 10..19 are not in the state
    second = Bench("a", folder=tmp_path)
    camera = second.cameras["a"]
    assert camera.resumed is not None and camera.resumed[0] == 20
    gap = second.outputs[0].events[0]
    assert gap.kind == "stream_gap"
    assert "frames 10..19" in gap.detail
    camera.film(5, gap_s=1.0)
    second.step(5)
    assert second.rows("a")[24] == [1, 2]
    assert sorted(second.rows("a")) == list(range(20, 25))


def test_the_gap_of_a_restart_counts_from_the_last_frame_not_from_the_save(tmp_path: Path) -> None:
    """At the default values: saved every 10 s, and gaps over 10 s start anew; killed 8 s after a save, back 4 s on."""
    config = LiveConfig()
    first = Bench("a", folder=tmp_path, max_gap_s=config.max_gap_s)
    first.cameras["a"].start_wall_s = time.time() - 12 - 2
    first.cameras["a"].film(20)
    first.step(10)
    first.worker.save("a")()
    first.cameras["a"].waiting = deque(replace(f, wall_s=f.wall_s + 7) for f in first.cameras["a"].waiting)
    first.step(10)
    second = Bench(max_gap_s=config.max_gap_s)
    source = LiveSource(CameraSpec("a", "rtsp://127.0.0.1:9/x"), config, threading.Event())
    output = second.worker.add("a", source, prompts_of(["red disc", "blue disc"]), tmp_path / "a")
    assert [e.kind for e in output.events] == ["stream_gap"]
    second.step()
    assert not any(kind == "ended" for kind, _ in second.events("a"))
    reader = _Reader(source, 1)
    image = av.VideoFrame.from_ndarray(picture(320, 192, 2.0, 0), format="rgb24")
    source.arrive(image, reader)
    second.step()
    assert second.rows("a") == {20: [1, 2]}
    [back] = [e for o in second.outputs for e in o.events if e.kind == "stream_reconnected"]
    assert back.detail == "ids go on"
    assert back.gap_s is not None
    assert 4 < back.gap_s < 9
    source.stop()
    source.join(5)


def test_what_a_restarted_worker_needs_to_get_ready_is_no_gap_of_the_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed 3 s ago, started again at once, models there only now: longer than a gap may be."""
    first = Bench("a", folder=tmp_path, max_gap_s=2.0)
    first.cameras["a"].start_wall_s = time.time() - 3 - 1
    first.cameras["a"].film(10)
    first.step(10)
    first.worker.save("a")()
    ids = {}
    for began_ago_s in (2.9, 0.0):
        monkeypatch.setattr(camera_worker, "STARTED_S", time.time() - began_ago_s)
        second = Bench("a", folder=tmp_path, max_gap_s=2.0)
        second.step()
        second.cameras["a"].film(3, gap_s=3.1)
        second.step(3)
        ids[began_ago_s] = second.rows("a")[second.cameras["a"].next_index - 1]
        second.cameras["a"].film(1, gap_s=2.5)  # the next gap is the camera's own
        second.step()
        assert [e for e, _ in second.events("a")].count("ended") >= 2
    assert ids == {2.9: [1, 2], 0.0: [5, 6]}


def test_the_tracker_is_told_how_much_it_missed() -> None:
    bench = Bench("a")
    bench.cameras["a"].film(10)
    bench.step(10)
    told: list[int] = []
    bench.trackers[0].skip = told.append  # type: ignore[method-assign]
    bench.cameras["a"].film(3, gap_s=4.0)
    bench.step(3)
    assert told == [40]
    bench.cameras["a"].film(1, gap_s=6.0)  # too long: another tracker, which missed nothing
    bench.step()
    assert told == [40]


def test_a_slow_first_frame_is_not_taken_for_the_usual_time_between_frames() -> None:
    """Everything is new to the first frame: the next one that is tracked may be seconds later."""
    bench = Bench("a")
    camera = bench.cameras["a"]
    camera.film(1)
    bench.step()
    camera.next_index += 25
    camera.film(6)
    bench.step(6)
    told: list[int] = []
    bench.trackers[0].skip = told.append  # type: ignore[method-assign]
    camera.film(1, gap_s=3.0)
    bench.step()
    assert told == [30]


def test_a_burst_after_a_freeze_is_missed_by_stream_time() -> None:
    """Thirty frames came at once and were dropped: no time went by, but three seconds of the scene."""
    bench = Bench("a")
    camera = bench.cameras["a"]
    camera.film(10)
    bench.step(10)
    told: list[int] = []
    bench.trackers[0].skip = told.append  # type: ignore[method-assign]
    camera.next_index += 2  # a drop now and then is nothing
    camera.film(3)
    bench.step(3)
    assert told == []
    camera.next_index += 29
    camera.film(3)
    bench.step(3)
    assert len(told) == 1
    assert told[0] == pytest.approx(30, abs=4)


def test_a_damaged_state_costs_one_camera_its_ids_and_no_number_is_given_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Bench("a", "b", folder=tmp_path)
    for camera in first.cameras.values():
        camera.film(10)
    first.step(10)
    for name in "ab":
        first.worker.save(name)()
    (tmp_path / "a" / "current.json").write_text("nonsense")
    with open(tmp_path / "a" / "births.txt", "a") as file:
        file.write("0 1")  # torn
    second = Bench("a", "b", folder=tmp_path)
    assert saved_phrases(tmp_path / "a") == []
    for camera in second.cameras.values():
        camera.film(3, gap_s=1.0)
    second.step(3)
    assert second.rows("b")[12] == [1, 2]
    assert second.rows("a") == {k: [3, 4] for k in (10, 11, 12)}
    gap, back = (e for o in second.outputs for e in o.events if e.stream_id == "a" and e.kind.startswith("stream"))
    assert "cannot be read" in gap.detail
    assert (back.detail, back.session) == ("new ids", 1)
    assert "nonsense" not in caplog.text


def test_numbers_go_on_after_what_is_known_of_a_stream() -> None:
    bench = Bench()
    camera = bench.cameras["a"] = Script("a")
    bench.worker.add("a", camera, prompts_of(["red disc", "blue disc"]), None, [Past(100, 7, 3, 9.0, 0.0)])
    assert camera.resumed is not None
    assert camera.resumed[0] == 100
    camera.film(2)
    bench.step(2)
    assert bench.rows("a") == {100: [8, 9], 101: [8, 9]}
    assert {e.session for o in bench.outputs for e in o.events} == {3}


def test_marks_outlive_their_state_and_an_older_file_is_read(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.update(10, 3, 2)
    marks.saw(1.5, 1000.25)
    assert Marks(tmp_path).past == Past(10, 3, 2, 1.5, 1000.25)
    drop_state(tmp_path, keep_marks=True)
    assert Marks(tmp_path).past == Past(10, 3, 2, 1.5, 1000.25)
    (tmp_path / "marks.bin").write_bytes(np.array([5, 4], np.int64).tobytes())
    assert Marks(tmp_path).past == Past(5, 4)
    drop_state(tmp_path, keep_marks=False)
    assert not tmp_path.exists()


def test_without_a_restorable_tracker_ids_start_after_the_old_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Bench("a", folder=tmp_path)
    first.cameras["a"].film(10)
    first.step(10)
    first.worker.save("a")()
    for state in (tmp_path / "a").glob("state-*/tracker/*"):
        state.write_text("{}")
    second = Bench("a", folder=tmp_path)
    second.cameras["a"].film(3, gap_s=1.0)
    second.step(3)
    assert second.rows("a")[12] == [3, 4]


def test_state_stays_small(tmp_path: Path) -> None:
    bench = Bench("a", folder=tmp_path)
    sizes = []
    for _ in range(6):
        bench.cameras["a"].film(50)
        bench.step(50)
        bench.outputs.clear()
        bench.worker.save("a")()
        sizes.append(sum(p.stat().st_size for p in (tmp_path / "a").rglob("*") if p.is_file()))
    assert max(sizes[3:]) <= max(sizes[:3]) * 1.1
    assert len(list((tmp_path / "a").glob("state-*"))) == 1


def test_removing_a_camera_stops_it() -> None:
    bench = Bench("a", "b")
    bench.cameras["a"].film(3)
    bench.step(3)
    output = bench.worker.remove("a", "taken off")
    assert bench.cameras["a"].is_stopped
    assert [e.kind for e in output.events] == ["ended", "ended"]
    assert list(bench.worker.cameras) == ["b"]
    assert np.array_equal(output.results, ())
