"""``uv run python -m benchmarks.live``: what live streams must reach, measured on this machine with the tiny model.

* ``soak``: one camera for N frames with eight objects that come and go: memory slope, time per frame, ids.
* ``latency``: from a frame's arrival to its rows, at 10 frames/s over RTSP.
* ``cameras``: eight cameras at 5 frames/s, one of them broken: the rate of each.
* ``chaos``: the camera is killed, frozen, fed garbage and changed in size, again and again: time to come back, ids.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_soak import PHRASES, soak
from configs.load import load_config
from pipeline.live.build import Models, load
from pipeline.live.run import StreamOptions, run_stream
from tests.live.servers import RtspProcess, wait_for

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
    parser.add_argument("--folder", type=Path, help="of the soak: its log and state; started again, it goes on")
    parser.add_argument("--set", action="append", default=[], help="of the soak: section.key=value")
    parser.add_argument("--tracker", default="sam3_memory", help="of the soak")
    args = parser.parse_args()
    models = tiny_models() if set(args.what) - {"soak"} else None
    for what in args.what:
        if what == "soak":
            folder = args.folder or Path(tempfile.mkdtemp(prefix="masklet-soak-"))
            result = soak(args.frames, folder, tracker=args.tracker, assignments=args.set)
        else:
            assert models is not None  # loaded above
            results: dict[str, Callable[[], dict[Any, Any]]] = {
                "latency": lambda: {n: latency(models, args.seconds, latency_frames=n) for n in (0, 15)},
                "cameras": lambda: cameras(models, args.seconds),
                "chaos": lambda: chaos(models, args.rounds),
            }
            result = results[what]()
        print(json.dumps({what: result}), flush=True)


if __name__ == "__main__":
    main()
