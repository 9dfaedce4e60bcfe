"""The parts of :mod:`benchmarks.live` but the soak: real cameras over RTSP, and the tiny model."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.live_soak import PHRASES
from configs.load import load_config
from configs.schema import Config
from pipeline import api, open_run
from pipeline.live.build import Models, input_size, live_config, load, make_worker
from pipeline.live.events import LiveResult
from pipeline.live.remote import RemoteService
from pipeline.live.run import StreamOptions, open_service
from pipeline.live.service import StreamService
from pipeline.live.sinks import Item, Outlet, open_sinks
from pipeline.sources.live_open import parse_cameras
from tests.live.rtsp_server import read_clock, write_film
from tests.live.servers import RtspProcess, wait_for

ROOT = Path(__file__).parents[1]
_CLOCK_MS, _UNREAD_MS = 65536, 30_000
"""The painted clock starts again after so long; and what is later than that was not read right."""
_HOLE_S = 1.5
_SETTLE_S = 3.0
"""Frames that came while the models loaded are no part of a rate."""


def tiny_config(phrases: Sequence[str] = PHRASES, **live: Any) -> Config:
    """The live preset with the packaged model on one thread."""
    values = {"prompts": list(phrases), "device": {"name": "cpu", "threads": 1}, "live": live}
    return live_config(load_config("live", (), values))


def tiny_models() -> Models:
    """The packaged model, loaded once."""
    return load(tiny_config())


class Glass:
    """A sink that reads the clock in the picture of each frame with rows, when the rows reach it."""

    wants_pictures = True

    def __init__(self) -> None:
        self.delays_ms: list[int] = []

    def write(self, items: Sequence[Item]) -> int:
        """Note how old the pictures are."""
        for item in items:
            if isinstance(item, LiveResult) and item.picture is not None and len(item.result):
                now_ms = round(time.time() * 1000)
                self.delays_ms.append((now_ms - read_clock(item.picture)) % _CLOCK_MS)
        return 0

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to close."""


class Stream:
    """``masklet stream`` in a thread, its lines as they come. A context manager.

    Args:
        models: track in this thread, with these; ``None``: in Ray actors.
        more: sinks beside the files; only with ``models``.
        workers: how many actors.
    """

    def __init__(
        self,
        urls: Sequence[str],
        models: Models | None,
        folder: Path,
        *,
        more: Sequence[Outlet] = (),
        workers: int = 0,
        phrases: Sequence[str] = PHRASES,
        **live: Any,
    ) -> None:
        config = tiny_config(phrases, **live)
        self.path, self.parquet = folder / "rows.jsonl", folder / "parquet"
        sinks = (f"jsonl:{self.path}", f"parquet:{self.parquet}")
        self.service: StreamService | RemoteService
        if models is None:
            self.service = open_service(config, StreamOptions(tuple(urls), sinks, ray="local", workers=workers))
        else:
            outlets = open_sinks(sinks, capacity=config.live.sink_queue, segment_s=60, rows_per_part=200_000)
            made, size = make_worker(config, models), input_size(models)
            self.service = StreamService(config, made, models.encode, [*outlets, *more], input_size=size)
            for spec in parse_cameras(urls):
                self.service.add_camera(spec, phrases)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self.service.run, args=(self._stop,), kwargs={"until_ended": False}, daemon=True
        )

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self.service.close(interrupted=True)

    def lines(self) -> list[dict[str, Any]]:
        """Everything so far."""
        return lines_of(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """Masklet rows so far."""
        return [r for r in self.lines() if r["type"] == "masklet"]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file so far."""
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("\n")]


def events_of(lines: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Events of one kind."""
    return [r for r in lines if r["type"] == "event" and r["kind"] == kind]


def ids_by_phrase(rows: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Masklet ids of each phrase."""
    return {p: sorted({r["masklet_id"] for r in rows if r["prompt"] == p}) for p in PHRASES}


# -- latency ------------------------------------------------------------------------------------------------------


def latency(models: Models, folder: Path, seconds: float, *, latency_frames: int, fps: float = 10) -> dict[str, Any]:
    """From the moment a picture is painted in the camera to its rows in a sink."""
    glass = Glass()
    outlet = Outlet("glass", glass, capacity=64, batch=1)
    with (
        RtspProcess(fps=fps, seconds=120 + seconds) as camera,
        Stream([camera.url()], models, folder, more=[outlet], latency_frames=latency_frames),
    ):
        if not wait_for(lambda: len(glass.delays_ms) > 20, 90):
            raise RuntimeError("the camera never came")
        glass.delays_ms.clear()
        time.sleep(seconds)
        delays = np.array(glass.delays_ms, float)
    hotstart_ms = max(latency_frames - 1, 0) * 1000 / fps
    own = delays[delays < _UNREAD_MS] - hotstart_ms
    return {
        "frames": len(delays),
        "unread": int((delays >= _UNREAD_MS).sum()),
        "hotstart_ms": round(hotstart_ms),
        "p50_ms": round(float(np.percentile(own, 50))),
        "p95_ms": round(float(np.percentile(own, 95))),
        "max_ms": round(float(own.max())),
    }


def latencies(models: Models, folder: Path, seconds: float) -> dict[str, Any]:
    """Without hotstart and with fifteen frames of it."""
    runs = {}
    for frames in (0, 15):
        (folder / str(frames)).mkdir()
        runs[f"latency_{frames}"] = latency(models, folder / str(frames), seconds, latency_frames=frames)
    return {**runs, "p95_ms": max(run["p95_ms"] for run in runs.values())}


# -- equality -----------------------------------------------------------------------------------------------------


def equality(models: Models, folder: Path, num_frames: int) -> dict[str, Any]:
    """Rows of a film over RTSP, and of the same film as a file."""
    film = write_film(folder / "film.ts", num_frames)
    offline_config = tiny_config(latency_frames=15)
    detector = offline_config.detector.model_copy(update={"batch_frames": 1})
    with (
        RtspProcess(film=film, seconds=120 + 2 * num_frames) as camera,
        Stream([camera.url()], models, folder, latency_frames=15, drop="wait", stall_timeout_s=60) as stream,
    ):
        [name] = stream.service.stream_ids()
        tracked = lambda: stream.service.worker.cameras[name].stats.tracked  # noqa: E731
        wait_for(lambda: tracked() >= num_frames, 30 + 1.0 * num_frames, 0.1)
    api.track_to_run(offline_config.model_copy(update={"detector": detector}), [str(film)], folder / "offline")
    offline = open_run(folder / "offline").table()
    live = pq.read_table(stream.parquet / "masklets")
    same = [column for column in offline.column_names if column not in ("video_id", "pts_s")]
    return {
        "frames": tracked(),
        "rows": live.num_rows,
        "offline_rows": offline.num_rows,
        "rows_equal": live.select(same).equals(offline.select(same)),
        "columns_that_differ": [c for c in same if not live[c].equals(offline[c])],
        "pts_differ_ms": _pts_difference_ms(live, offline),
    }


def _pts_difference_ms(live: pa.Table, offline: pa.Table) -> float | None:
    """Longest difference of stream times, both from their first row on; ``None`` for other rows."""
    if live.num_rows != offline.num_rows or not live.num_rows:
        return None
    a, b = (np.asarray(t["pts_s"]) - t["pts_s"][0].as_py() for t in (live, offline))
    return round(1000 * float(np.abs(a - b).max()), 3)


# -- cameras ------------------------------------------------------------------------------------------------------


@contextmanager
def garbage_camera() -> Iterator[str]:
    """A server that answers whatever comes with noise."""
    dice = random.Random(0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def answer() -> None:
            listener.settimeout(0.2)
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    continue
                with connection:
                    connection.sendall(dice.randbytes(10_000))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/garbage"
        finally:
            stop.set()
            thread.join()


@contextmanager
def refusing_camera() -> Iterator[str]:
    """An address at which nobody listens."""
    yield "rtsp://127.0.0.1:9/broken"


BROKEN: dict[str, Callable[[], Any]] = {"refuses": refusing_camera, "garbage": garbage_camera}


def cameras(
    models: Models | None,
    folder: Path,
    seconds: float,
    *,
    kind: str = "refuses",
    workers: int = 0,
    phrases: Sequence[str] = PHRASES,
    count: int = 8,
    fps: float = 5,
) -> dict[str, Any]:
    """The rate of each of several cameras, the last of them broken in some way.

    ``models``, ``workers``: see :class:`Stream`.
    """
    with RtspProcess(cameras=count - 1, fps=fps, seconds=120 + seconds) as server, BROKEN[kind]() as broken:
        urls = [*(server.url(k) for k in range(count - 1)), broken]
        with Stream(urls, models, folder, workers=workers, phrases=phrases, latency_frames=0) as stream:
            if not wait_for(lambda: len({r["video_id"] for r in stream.rows()}) >= count - 1, 90):
                raise RuntimeError("a camera never came")
            time.sleep(_SETTLE_S)
            before, start_s = _counts(stream), time.monotonic()
            time.sleep(seconds)
            after, took_s = _counts(stream), time.monotonic() - start_s
    rose = {name: np.array(after[name]) - before[name] for name in after}
    good = {name: counts for name, counts in rose.items() if counts[0] > 0}
    dropped = {name: round(float(d / a), 3) for name, (a, _, d) in good.items()}
    return {
        "cameras_with_rows": len(good),
        "tracked_fps": sorted(round(float(t / took_s), 2) for _, t, _ in good.values()),
        "arrived_fps": sorted(round(float(a / took_s), 2) for a, _, _ in good.values()),
        "dropped": {name: int(d) for name, (_, _, d) in good.items()},
        "dropped_share": dropped,
        "fairness": round(max(dropped.values()) - min(dropped.values()), 3),
        "counted": all(abs(a - t - d) <= 4 for a, t, d in good.values()),  # a few are on their way
    }


def _counts(stream: Stream) -> dict[str, tuple[int, int, int]]:
    """Frames that arrived, were tracked and were dropped, by camera."""
    return {s["id"]: (s["arrived"], s["tracked"], s["dropped"]) for s in stream.service.statuses()}


def all_cameras(folder: Path, seconds: float, **options: Any) -> dict[str, Any]:
    """With each kind of broken camera, one phrase, and two workers for the two cores."""
    found = {}
    for kind in BROKEN:
        (folder / kind).mkdir()
        found[kind] = cameras(None, folder / kind, seconds, kind=kind, workers=2, phrases=PHRASES[:1], **options)
    return {
        **found,
        "cameras_with_rows": min(f["cameras_with_rows"] for f in found.values()),
        "lowest_fps": min(min(f["tracked_fps"]) for f in found.values()),
        "most_dropped": max(max(f["dropped_share"].values()) for f in found.values()),
        "fairness": max(f["fairness"] for f in found.values()),
        "counted": all(f["counted"] for f in found.values()),
    }


# -- chaos --------------------------------------------------------------------------------------------------------


def chaos(models: Models, folder: Path, kills: int, *, seed: int = 0) -> dict[str, Any]:
    """The camera is killed again and again, and between two kills it freezes, talks garbage or changes its size."""
    dice, troubles = random.Random(seed), []
    back_s: list[float | None] = []
    with (
        RtspProcess(seconds=120 + 20 * kills) as camera,
        Stream([camera.url()], models, folder, latency_frames=0, max_gap_s=30) as stream,
    ):
        if not wait_for(lambda: len(stream.rows()) > 20, 90):
            raise RuntimeError("the camera never came")
        for k in range(2 * kills):
            troubles.append(("freeze", "garbage", "size")[k // 2 % 3] if k % 2 else "kill")
            _make(troubles[-1], camera, dice)
            back_s.append(_seconds_until_rows(stream))
            time.sleep(1.0)
        lines = stream.lines()
    rows = [r for r in lines if r["type"] == "masklet"]
    ids = ids_by_phrase(rows)
    return {
        "rounds": len(troubles),
        "kills": troubles.count("kill"),
        "came_back": sum(b is not None for b in back_s),
        "worst_s": max((b for b in back_s if b is not None), default=None),
        "seconds": [list(pair) for pair in zip(troubles, back_s, strict=True)],
        "sessions": len({r["session"] for r in rows}),
        "ids_by_phrase": ids,
        "ids_kept": all(len(found) == 1 for found in ids.values()),
        **gap_report(lines),
    }


def gap_report(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether every gap is one event, followed by one return, and no hole is without."""
    story = [r for r in lines if r["type"] == "event" and r["kind"].startswith("stream")]
    kinds = "".join("g" if e["kind"] == "stream_gap" else "r" for e in story if _is_of_gap(e))
    ends = [e["wall_s"] for e in story if e["gap_s"] is not None]
    walls = sorted({r["wall_s"] for r in lines if r["type"] == "masklet"})
    holes = [(a, b) for a, b in pairwise(walls) if b - a > _HOLE_S]
    return {
        "gaps": kinds.count("g"),
        "returns": kinds.count("r"),
        "one_event_per_gap": re.fullmatch("(gr)*g?", kinds) is not None,
        "holes": len(holes),
        "holes_without_event": sum(not any(a < wall_s <= b for wall_s in ends) for a, b in holes),
    }


def _is_of_gap(event: dict[str, Any]) -> bool:
    """Not a mere change of size."""
    return event["kind"] == "stream_gap" or event["gap_s"] is not None


def _seconds_until_rows(stream: Stream) -> float | None:
    """How long until a frame that arrives after now has a row; ``None`` if none comes."""
    there_s = time.time()
    came = wait_for(lambda: any(r["wall_s"] > there_s for r in stream.rows()[-20:]), 20)
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


# -- kill ---------------------------------------------------------------------------------------------------------


def kill(folder: Path, rounds: int, *, seed: int = 0, fps: float = 10) -> dict[str, Any]:
    """The process of ``masklet stream`` is killed, some time after a save, and started again; at the default limits."""
    dice = random.Random(seed)
    with RtspProcess(fps=fps, seconds=120 + 180 * rounds) as camera:
        worker = Worker(camera.url(), folder)
        try:
            found = [worker.kill_once(dice) for _ in range(rounds)]
        finally:
            worker.end(signal.SIGINT)
    return {
        "rounds": found,
        "ids_go_on": all(f["ids_go_on"] for f in found),
        "missing_s": max(f["missing_frames"] for f in found) / fps,
        "missing_and_not_said": sum(f["missing_and_not_said"] for f in found),
        "longest_gap_s": max(f["gap_s"] for f in found),
        "rows_twice": worker.rows_twice(),
    }


class Worker:
    """``masklet stream`` as a process, with a run folder and lines of JSON beside it."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._out, self._jsonl = url, folder / "run", folder / "rows.jsonl"
        self._process = self._start()

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "stream", self._url]
        command += ["-o", str(self._out), "--sink", f"jsonl:{self._jsonl}", "--latency", "0", "--device", "cpu"]
        command += [part for phrase in PHRASES for part in ("--text", phrase)]
        command += ["--set", "device.threads=1", *flags]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end(self, number: int) -> None:
        """End the process by a signal."""
        self._process.send_signal(number)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _rows(self) -> list[dict[str, Any]]:
        return [r for r in lines_of(self._jsonl) if r["type"] == "masklet"]

    def _saved(self) -> float:
        """When the state was last saved; 0 before the first time."""
        return max((p.stat().st_mtime for p in self._out.glob("state/*/current.json")), default=0.0)

    def kill_once(self, dice: random.Random) -> dict[str, Any]:
        """Kill it some seconds after a save, start it again, and see what became of the ids."""
        began_s = time.time()
        if not wait_for(lambda: self._saved() > began_s, 120, 0.1):
            raise RuntimeError("no state was saved")
        time.sleep(dice.uniform(2.0, 8.0))
        self.end(signal.SIGKILL)
        before = lines_of(self._jsonl)
        kept = set(pq.read_table(self._out / "masklets")["frame"].to_pylist())
        self._process = self._start("--resume")
        wanted = len(before) + 60
        if not wait_for(lambda: len(lines_of(self._jsonl)) > wanted, 120, 0.1):
            raise RuntimeError("the stream did not come back")
        after = lines_of(self._jsonl)[len(before) :]
        return _compared(before, after, kept)

    def rows_twice(self) -> int:
        """Rows of the run folder or of the lines that are there twice."""
        table = pq.read_table(self._out / "masklets")
        kept = list(zip(table["frame"].to_pylist(), table["masklet_id"].to_pylist(), strict=True))
        lines = [(r["frame"], r["masklet_id"]) for r in self._rows()]
        return len(kept) - len(set(kept)) + len(lines) - len(set(lines))


def _told(lines: Sequence[dict[str, Any]]) -> set[int]:
    """Frames that these events say may be missing."""
    said = (re.search(r"frames (\d+)\.\.(\d+)", gap["detail"]) for gap in events_of(lines, "stream_gap"))
    return {frame for m in said if m is not None for frame in range(int(m[1]), int(m[2]) + 1)}


def _compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], kept: set[int]) -> dict[str, Any]:
    """Ids before and after a kill, and what is missing from the run folder since the kill before."""
    old, new = ([r for r in lines if r["type"] == "masklet"] for lines in (before, after))
    missing = {r["frame"] for r in old} - kept - _told(before)
    [gap, *_] = events_of(after, "stream_gap")
    [back, *_] = events_of(after, "stream_reconnected")
    last = {
        p: ids[-1] for p, ids in ids_by_phrase([r for r in old if r["frame"] > old[-1]["frame"] - 20]).items() if ids
    }
    return {
        "ids_go_on": back["detail"].startswith("ids go on")
        and all(last[p] in ids for p, ids in ids_by_phrase(new).items() if p in last),
        "missing_frames": len(missing),
        "missing_and_not_said": len(missing - _told([gap])),
        "gap_s": round(back["gap_s"] or 0.0, 2),
        "detail": gap["detail"],
    }
