"""``uv run python -m benchmarks.live``: what live streams must reach, measured on this machine with the tiny model.

* ``soak``: one camera for N frames with eight objects that come and go: memory slope, time per frame, ids.
* ``latency``: from a frame's arrival to its rows, at 10 frames/s over RTSP.
* ``cameras``: eight cameras at 5 frames/s, one of them broken: the rate of each.
* ``chaos``: the camera is killed, frozen, fed garbage and changed in size, again and again: time to come back, ids.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from configs.load import load_config
from pipeline.live.linker import LinkerConfig
from pipeline.live.run import Models, StreamOptions, load, run_stream
from pipeline.sources.live import LiveFrame, Lost, State
from pipeline.types import Detections, Frame, Prompts
from tests.live.servers import RtspProcess, wait_for
from workers.camera_worker import CameraWorker

PHRASES = ("red circle", "blue circle", "green circle")
COLOURS = ((220, 40, 40), (40, 80, 220), (40, 170, 70))


# -- soak ---------------------------------------------------------------------------------------------------------


@dataclass
class Disc:
    """An object of the soak: crosses the picture on its own lane and leaves."""

    number: int
    lane: int
    born: int
    life: int


class Street:
    """Eight lanes, one disc on each; where one leaves, another comes after a pause. A camera feed without a camera."""

    size, lanes = 112, 8

    def __init__(self, num_frames: int, seed: int = 0) -> None:
        self.state, self.is_paused = State.LIVE, False
        self.next_index = 0
        self.num_discs = 0
        self._num_frames, self._random = num_frames, random.Random(seed)
        self._discs = [self._new(lane, -self._random.randrange(300)) for lane in range(self.lanes)]

    def _new(self, lane: int, born: int) -> Disc:
        self.num_discs += 1
        return Disc(self.num_discs, lane, born, self._random.randrange(250, 450))

    def poll(self) -> Lost | None:
        """Ends after the last frame."""
        if self.next_index >= self._num_frames and self.state is State.LIVE:
            self.state = State.ENDED
            return Lost("", True)
        return None

    def take(self) -> LiveFrame | None:
        """The next picture."""
        if self.next_index >= self._num_frames:
            return None
        index = self.next_index
        self.next_index += 1
        for k, disc in enumerate(self._discs):
            if index >= disc.born + disc.life:
                self._discs[k] = self._new(disc.lane, index + self._random.randrange(5, 40))
        image = np.full((self.size, self.size, 3), 150, np.uint8)
        for disc, (x, y, r) in self.seen(index):
            cv2.circle(image, (x, y), r, COLOURS[disc.number % 3], -1)
        frame = Frame("soak", index, index / 10, image, (self.size, self.size))
        return LiveFrame(frame, 1e9 + index / 10, time.monotonic())

    def seen(self, index: int) -> list[tuple[Disc, tuple[int, int, int]]]:
        """Discs in the picture, with centre and radius."""
        out = []
        for disc in self._discs:
            age = index - disc.born
            if 0 <= age < disc.life:
                x = -8 + (self.size + 16) * age / disc.life
                out.append((disc, (round(x), 7 + 14 * disc.lane, 5)))
        return out

    def stop(self) -> None:
        """Nothing to stop."""

    def resume(self, next_index: int, pts_s: float, wall_s: float, source_size: tuple[int, int]) -> None:
        """Not used here."""


class TrueDetector:
    """Reports the discs as they are; vision features are the real model's."""

    def __init__(self, street: Street, model: Any) -> None:
        self._street, self._model = street, model
        self.image_size = model.image_size

    def features(self, frame: Frame) -> Any:
        """For the memory tracker."""
        return self._model.features(frame)

    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        """One for each disc that shows at least a dozen pixels."""
        return [self._one(frame) for frame in frames]

    def _one(self, frame: Frame) -> Detections:
        size, boxes, logits, phrases = self._street.size, [], [], []
        for disc, (x, y, r) in self._street.seen(frame.index):
            mask = np.zeros((size, size), np.uint8)
            cv2.circle(mask, (x, y), r, 1, -1)
            if mask.sum() >= 12:
                ys, xs = np.nonzero(mask)
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                logits.append(np.where(cv2.resize(mask, (size // 2, size // 2)) > 0, 6.0, -6.0))
                phrases.append(disc.number % 3)
        if not boxes:
            return Detections.empty((size // 2, size // 2))
        return Detections(
            np.array(boxes, np.float32),
            np.full(len(boxes), 0.95, np.float32),
            np.array(phrases, np.int16),
            np.stack(logits).astype(np.float32),
        )


def soak(num_frames: int, *, tracker: str = "sam3_memory", warm_up: int = 5000) -> dict[str, Any]:
    """Memory and time of one endless camera."""
    values = {"tracker": {"name": tracker}, "device": {"name": "cpu", "threads": 1}, "prompts": list(PHRASES)}
    config = load_config("live", (), values)
    models = load(config)
    street = Street(num_frames)
    detector = TrueDetector(street, models.detector)
    linking = LinkerConfig(15, 15, 0.5, 10.0)
    worker = CameraWorker(detector, models.make_tracker, linking, batch_frames=1, max_gap_s=10)
    worker.add("soak", street, models.encode(PHRASES))
    camera = worker.cameras["soak"]
    times_s, rss, born, live = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        while street.state is State.LIVE:
            start_s = time.perf_counter()
            outputs, count = worker.step()
            if count:
                times_s.append(time.perf_counter() - start_s)
            born += [e.masklet_id for o in outputs for e in o.events if e.kind == "born"]
            index = street.next_index
            if index % 100 == 0 and camera.linker is not None:
                live.append(camera.linker.num_visible)
            if index % 1000 == 0 and camera.tracker is not None and count:
                camera.tracker.save(Path(folder))  # part of a real run
                gc.collect()
                rss.append((index, rss_mb()))
    return _soak_report(times_s, rss, born, live, street, warm_up)


def _soak_report(
    times_s: list[float], rss: list[tuple[int, float]], born: list[Any], live: list[int], street: Street, warm_up: int
) -> dict[str, Any]:
    late = [(i, mb) for i, mb in rss if i >= warm_up]
    slope = float(np.polyfit(*zip(*late, strict=True), 1)[0]) * 10_000 if len(late) > 1 else float("nan")
    fifth = max(len(times_s) // 5, 1)
    start, end = times_s[fifth : 2 * fifth], times_s[-fifth:]
    return {
        "frames": len(times_s),
        "objects_live_mean": round(float(np.mean(live)), 1) if live else 0,
        "discs": street.num_discs,
        "masklets": len(born),
        "ids_never_reused": born == sorted(set(born)),
        "rss_mb": [round(mb, 1) for _, mb in rss],
        "rss_slope_mb_per_10k": round(slope, 3),
        "ms_p95_start": round(1000 * float(np.percentile(start, 95)), 2),
        "ms_p95_end": round(1000 * float(np.percentile(end, 95)), 2),
        "ms_median_start": round(1000 * float(np.median(start)), 2),
        "ms_median_end": round(1000 * float(np.median(end)), 2),
    }


def rss_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


# -- streams over RTSP --------------------------------------------------------------------------------------------


class Stream:
    """``masklet stream`` in a thread, its lines as they come. A context manager."""

    def __init__(self, urls: Sequence[str], models: Models, folder: Path, **live: Any) -> None:
        values = {"prompts": list(PHRASES), "device": {"name": "cpu", "threads": 1}, "live": live}
        self.path = folder / "rows.jsonl"
        self._config = load_config("live", (), values)
        self._options = StreamOptions(urls=tuple(urls), sinks=(f"jsonl:{self.path}",), realtime=True)
        self._models, self._stop = models, threading.Event()
        self._thread = threading.Thread(
            target=run_stream, args=(self._config, self._options, models, self._stop), daemon=True
        )

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def lines(self) -> list[dict[str, Any]]:
        """Everything so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def rows(self) -> list[dict[str, Any]]:
        """Masklet rows so far."""
        return [r for r in self.lines() if r["type"] == "masklet"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind so far."""
        return [r for r in self.lines() if r["type"] == "event" and r["kind"] == kind]


def tiny_models() -> Models:
    """The packaged model, loaded once."""
    values = {"prompts": list(PHRASES), "device": {"name": "cpu", "threads": 1}}
    return load(load_config("live", (), values))


def latency(models: Models, seconds: float, *, latency_frames: int = 0, fps: float = 10) -> dict[str, Any]:
    """Arrival to written row."""
    delays: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        RtspProcess(fps=fps) as camera,
        Stream([camera.url()], models, Path(folder), latency_frames=latency_frames) as stream,
    ):
        wait_for(lambda: len(stream.rows()) > 20, 60)
        for line in _follow(stream.path, seconds):
            row = json.loads(line)
            if row["type"] == "masklet":
                delays.append(time.time() - row["wall_s"])
    hotstart_s = max(latency_frames - 1, 0) / fps
    own = np.array(delays) - hotstart_s
    return {
        "rows": len(delays),
        "hotstart_s": hotstart_s,
        "p50_ms_beyond_hotstart": round(1000 * float(np.percentile(own, 50))),
        "p95_ms_beyond_hotstart": round(1000 * float(np.percentile(own, 95))),
    }


def _follow(path: Path, seconds: float) -> Iterator[str]:
    """New lines of a file as they come."""
    until_s = time.monotonic() + seconds
    with open(path) as file:
        file.seek(0, 2)
        while time.monotonic() < until_s:
            line = file.readline()
            if line.endswith("\n"):
                yield line
            else:
                time.sleep(0.005)


def cameras(models: Models, seconds: float, *, count: int = 8, fps: float = 5) -> dict[str, Any]:
    """The rate of each of several cameras, the last of them broken."""
    with tempfile.TemporaryDirectory() as folder, RtspProcess(cameras=count - 1, fps=fps) as server:
        urls = [*(server.url(k) for k in range(count - 1)), "rtsp://127.0.0.1:9/broken"]
        with Stream(urls, models, Path(folder), latency_frames=0) as stream:
            wait_for(lambda: len({r["video_id"] for r in stream.rows()}) >= count - 1, 90)
            begin, start_s = len(stream.lines()), time.monotonic()
            time.sleep(seconds)
            rows = [r for r in stream.lines()[begin:] if r["type"] == "masklet"]
            took_s = time.monotonic() - start_s
    frames: dict[str, set[int]] = {}
    for row in rows:
        frames.setdefault(row["video_id"], set()).add(row["frame"])
    rates = sorted(round(len(f) / took_s, 2) for f in frames.values())
    arrived = sorted(round((max(f) - min(f) + 1) / took_s, 2) for f in frames.values())
    return {"cameras_with_rows": len(frames), "rows_fps": rates, "arrived_fps": arrived}


def chaos(models: Models, rounds: int, *, seed: int = 0) -> dict[str, Any]:
    """Trouble, round after round; how long until rows come again, once the camera is there again."""
    dice, troubles = random.Random(seed), []
    back_s: list[float | None] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        RtspProcess() as camera,
        Stream([camera.url()], models, Path(folder), latency_frames=0, max_gap_s=30) as stream,
    ):
        assert wait_for(lambda: len(stream.rows()) > 20, 90), "the stream never came"
        for k in range(rounds):
            troubles.append(("kill", "freeze", "garbage", "size")[k % 4])
            _make(troubles[-1], camera, dice)
            back_s.append(_seconds_until_rows(stream))
        gaps, returns = stream.events("stream_gap"), stream.events("stream_reconnected")
        rows = stream.rows()
    cut = [b for b, t in zip(back_s, troubles, strict=True) if t in ("kill", "freeze")]
    return {
        "rounds": rounds,
        "came_back": sum(b is not None for b in back_s),
        "worst_s": max((b for b in cut if b is not None), default=None),
        "seconds": back_s,
        "gaps": len(gaps),
        "reconnected": len(returns),
        "sessions": len({r["session"] for r in rows}),
        "ids_by_phrase": {p: sorted({r["masklet_id"] for r in rows if r["prompt"] == p}) for p in PHRASES},
    }


def _seconds_until_rows(stream: Stream) -> float | None:
    """How long until a frame that arrives after now has a row; ``None`` if none comes."""
    there_s = time.time()
    came = wait_for(lambda: any(r["wall_s"] > there_s for r in stream.rows()), 20)
    return round(time.time() - there_s, 2) if came else None


def _make(trouble: str, camera: RtspProcess, dice: random.Random) -> None:
    """Cause it, and undo it where it is the camera that has to come back."""
    if trouble == "kill":
        camera.kill()
        time.sleep(dice.uniform(0.2, 3.0))
        camera.start()
    elif trouble == "freeze":
        camera.freeze()
        time.sleep(dice.uniform(1.0, 5.0))
        camera.thaw()
    elif trouble == "garbage":
        camera.tell("garbage")
        time.sleep(1.0)
    else:
        camera.tell(f"size {dice.choice(['160x96', '320x192', '480x288'])}")


def main() -> None:
    """Run what is asked for and print it as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["latency", "cameras", "chaos", "soak"])
    parser.add_argument("--frames", type=int, default=20_000, help="of the soak")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=20, help="of chaos")
    args = parser.parse_args()
    models = tiny_models() if set(args.what) - {"soak"} else None
    for what in args.what:
        if what == "soak":
            result = soak(args.frames)
        else:
            assert models is not None  # loaded above
            results = {
                "latency": lambda: {n: latency(models, args.seconds, latency_frames=n) for n in (0, 15)},
                "cameras": lambda: cameras(models, args.seconds),
                "chaos": lambda: chaos(models, args.rounds),
            }
            result = results[what]()
        print(json.dumps({what: result}), flush=True)


if __name__ == "__main__":
    main()
