"""The soak of :mod:`benchmarks.live`: one endless camera, eight objects that come and go, for as long as it takes.

It logs a line per window, keeps its state beside the log and goes on from there when it is started again. At the end
the state of the beginning is loaded once more and both are run in turns: what else the machine does, it does to both.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from configs.load import load_config
from pipeline.live.build import Models, load
from pipeline.live.linker import LinkerConfig
from pipeline.sources.live import LiveFrame, Lost, State
from pipeline.types import Detections, Frame, Prompts
from workers.camera_worker import CameraWorker

PHRASES = ("red circle", "blue circle", "green circle")
COLOURS = ((220, 40, 40), (40, 80, 220), (40, 170, 70))
WINDOW, SAVE_EVERY, BEGINNING = 250, 1000, 2000
"""Frames per line of the log; between saves; after which the state counts as that of the beginning."""
WARM_UP = 2000
"""Frames of a process before its memory is judged."""
COMPARED = 300
"""Frames that beginning and end are run in turns."""


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

    def __init__(self, num_frames: int = 0, seed: int = 0) -> None:
        self.state, self.is_paused = State.LIVE, False
        self.next_index = 0
        self.num_discs = 0
        self.num_frames, self._random = num_frames, random.Random(seed)
        self._discs = [self._new(lane, -self._random.randrange(300)) for lane in range(self.lanes)]

    def _new(self, lane: int, born: int) -> Disc:
        self.num_discs += 1
        return Disc(self.num_discs, lane, born, self._random.randrange(250, 450))

    def poll(self) -> Lost | None:
        """Ends after the last frame."""
        if self.next_index >= self.num_frames and self.state is State.LIVE:
            self.state = State.ENDED
            return Lost("", True)
        return None

    def take(self) -> LiveFrame | None:
        """The next picture."""
        if self.next_index >= self.num_frames:
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
        return LiveFrame(frame, time.time(), time.monotonic())

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

    def resume(self, next_index: int, pts_s: float, wall_s: float, source_size: tuple[int, int] | None) -> None:
        """The street knows itself where it was."""


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


class Soak:
    """A worker on a street, its measurements, and both on disk.

    Args:
        folder: keeps ``log.jsonl`` and the states; what is there is continued.
        tracker: as in ``tracker.name``.
    """

    def __init__(self, folder: Path, models: Models, num_frames: int) -> None:
        self._folder, self._models, self._num_frames = folder, models, num_frames
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.jsonl"
        self._bench = Bench.load(folder / "latest", models, num_frames)

    def run(self, warm_up: int) -> dict[str, Any]:
        """Go on to the end; the report."""
        self._note(started=self._bench.street.next_index, pid=os.getpid())
        while self._bench.street.next_index < self._num_frames:
            self._window()
        return report(self.lines(), warm_up) | self._compare()

    def _window(self) -> None:
        bench, count = self._bench, min(WINDOW, self._num_frames - self._bench.street.next_index)
        times_ms, cpu_ms = np.array([bench.step() for _ in range(count)]).T
        gc.collect()
        self._note(
            frame=bench.street.next_index,
            rss_mb=round(rss_mb(), 1),
            ms_median=round(float(np.median(times_ms)), 2),
            ms_p95=round(float(np.percentile(times_ms, 95)), 2),
            cpu_ms_median=round(float(np.median(cpu_ms)), 2),
            cpu_ms_p95=round(float(np.percentile(cpu_ms, 95)), 2),
            objects=bench.num_visible,
            masklets=bench.num_masklets,
            discs=bench.street.num_discs,
            session=bench.session,
            ids_never_reused=bench.ids_rise,
            load=round(os.getloadavg()[0], 1),
        )
        if bench.street.next_index % SAVE_EVERY == 0:
            bench.save(self._folder / "latest")
            if bench.street.next_index == min(BEGINNING, self._num_frames // 4 // SAVE_EVERY * SAVE_EVERY):
                shutil.copytree(self._folder / "latest", self._folder / "beginning", dirs_exist_ok=True)

    def _compare(self) -> dict[str, Any]:
        """Times of the beginning's state and of the end's, a frame of each in turn."""
        if not (self._folder / "beginning").exists():
            return {}
        benches = [
            Bench.load(self._folder / n, self._models, self._num_frames + WINDOW) for n in ("beginning", "latest")
        ]
        times = np.array([[bench.step() for bench in benches] for _ in range(COMPARED)])  # (frame, which, wall or CPU)
        p95, median = np.percentile(times, 95, axis=0), np.median(times, axis=0)
        return {
            "in_turns_ms_p95": np.round(p95[:, 0], 2).tolist(),
            "in_turns_cpu_ms_p95": np.round(p95[:, 1], 2).tolist(),
            "in_turns_p95_ratio": round(float(p95[1, 0] / p95[0, 0]), 3),
            "in_turns_cpu_p95_ratio": round(float(p95[1, 1] / p95[0, 1]), 3),
            "in_turns_cpu_median_ratio": round(float(median[1, 1] / median[0, 1]), 3),
        }

    def _note(self, **values: Any) -> None:
        with open(self._log, "a") as file:
            file.write(json.dumps(values) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


class Bench:
    """One worker on one street."""

    def __init__(self, street: Street, folder: Path, models: Models) -> None:
        self.street, self._folder = street, folder
        detector = TrueDetector(street, models.detector)
        linking = LinkerConfig(15, 15, 0.5, 10.0)
        self._worker = CameraWorker(detector, models.make_tracker, linking, batch_frames=1, max_gap_s=10)
        self._worker.add("soak", street, models.encode(PHRASES), folder / "state")
        self._last_id = self.num_masklets
        self.ids_rise = True

    @classmethod
    def load(cls, folder: Path, models: Models, num_frames: int) -> Bench:
        """Continue what :meth:`save` wrote, or start."""
        kept = folder / "street.pickle"
        if not kept.exists():  # marks of a run that never saved would have this one go on after it
            shutil.rmtree(folder / "state", ignore_errors=True)
        street = pickle.loads(kept.read_bytes()) if kept.exists() else Street()
        street.num_frames = num_frames
        return cls(street, folder, models)

    def save(self, folder: Path) -> None:
        """Everything that is needed to go on."""
        self._worker.save("soak")()
        (folder / "street.pickle").write_bytes(pickle.dumps(self.street))

    def step(self) -> tuple[float, float]:
        """Follow the street for one frame; how long it took on the clock and of this thread's CPU, ms."""
        start_s, cpu_s = time.perf_counter(), time.thread_time()
        outputs, _ = self._worker.step()
        took_ms = 1000 * (time.perf_counter() - start_s), 1000 * (time.thread_time() - cpu_s)
        for event in (e for o in outputs for e in o.events if e.kind == "born"):
            assert event.masklet_id is not None  # a birth is of a masklet
            self.ids_rise &= event.masklet_id > self._last_id
            self._last_id = max(self._last_id, event.masklet_id)
        return took_ms

    @property
    def num_visible(self) -> int:
        """Objects in sight."""
        linker = self._worker.cameras["soak"].linker
        return linker.num_visible if linker is not None else 0

    @property
    def session(self) -> int:
        """Rises when ids start afresh."""
        linker = self._worker.cameras["soak"].linker
        return linker.session if linker is not None else 0

    @property
    def num_masklets(self) -> int:
        """Masklets so far."""
        linker = self._worker.cameras["soak"].linker
        return linker.num_masklets if linker is not None else 0


def report(lines: Sequence[dict[str, Any]], warm_up: int) -> dict[str, Any]:
    """What a log says. Memory is judged within the last process, after its own ``warm_up`` frames."""
    windows = list({line["frame"]: line for line in lines if "frame" in line}.values())
    began = [line["started"] for line in lines if "started" in line][-1]
    late = np.array([(w["frame"], w["rss_mb"]) for w in windows if w["frame"] - began > warm_up])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 10_000 if len(late) > 2 else None
    fifth = max(len(windows) // 5, 1)
    start, end = windows[fifth : 2 * fifth], windows[-fifth:]
    return {
        "frames": windows[-1]["frame"],
        "objects_live_mean": round(float(np.mean([w["objects"] for w in windows])), 1),
        "discs": windows[-1]["discs"],
        "masklets": windows[-1]["masklets"],
        "ids_never_reused": all(w["ids_never_reused"] for w in windows),
        "rss_mb": [w["rss_mb"] for w in windows[:: max(len(windows) // 20, 1)]],
        "last_session": max(w.get("session", 0) for w in windows),
        "slope_frames": [int(late[0, 0]), int(late[-1, 0])] if len(late) > 2 else None,
        "rss_slope_mb_per_10k": None if slope is None else round(slope, 3),
        "ms_p95_start": round(float(np.median([w["ms_p95"] for w in start])), 2) if start else None,
        "ms_p95_end": round(float(np.median([w["ms_p95"] for w in end])), 2),
        "cpu_ms_p95_start": round(float(np.median([w["cpu_ms_p95"] for w in start])), 2) if start else None,
        "cpu_ms_p95_end": round(float(np.median([w["cpu_ms_p95"] for w in end])), 2),
        "load": [min(w["load"] for w in windows), max(w["load"] for w in windows)],
    }


def soak(
    num_frames: int,
    folder: Path,
    *,
    tracker: str = "sam3_memory",
    assignments: Sequence[str] = (),
    warm_up: int = WARM_UP,
) -> dict[str, Any]:
    """Run or continue a soak in ``folder``, with these assignments on top of the live preset."""
    values = {"tracker": {"name": tracker}, "device": {"name": "cpu", "threads": 1}, "prompts": list(PHRASES)}
    return Soak(folder, load(load_config("live", assignments, values)), num_frames).run(warm_up)


def rss_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
