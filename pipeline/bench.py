"""``masklet bench``: frames per second, where the time goes, and whether memory grows, with a fixed number of objects.

Every case is a scene of its own (:mod:`pipeline.bench_scene`): coloured boxes for pictures, K objects that are found
and tracked whatever the model thinks, all of its compute paid. The modes of the memory tracker take turns on blocks of
frames, so that other programs slow all of them alike; decoding is not part of it, rendering to run lengths is. The
first quarter of the frames warms up, the last one is for the parts, what lies between for the speed.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import Config, TrackerConfig
from pipeline.bench_scene import ForcedDetector, ForcedTracker, Scene, Stopwatch, synthetic_prompts
from pipeline.checkpoints import Checkpoint, open_checkpoint
from pipeline.compiled import COMPILER
from pipeline.errors import RunError, UsageError
from pipeline.types import Frame, Prompts
from trackers.rendering import LowResTracks, render
from trackers.sam3_memory import TrackerNetworks
from trackers.sam_heads import CompiledParts
from workers.devices import prepare_device

_MIN_SLOPE_FRAMES = 100
"""Half of the frames are counted."""


class Subject:
    """Detector and memory tracker on one scene, frames in batches as a job has them.

    Args:
        detector: shared between subjects that take turns.
        parts: the tracker's networks, likewise.
        scene: what is found.
        prompts: as many phrases as the scene has.
        config: the tracker's.
        batch_frames: frames per detector call.
        name: the stream; tells the features of subjects apart, so that each pays for its own.
        watch: counts the parts, while it is on.
    """

    def __init__(
        self,
        detector: ForcedDetector,
        parts: TrackerNetworks,
        scene: Scene,
        prompts: Prompts,
        config: TrackerConfig,
        batch_frames: int,
        name: str,
        watch: Stopwatch,
    ) -> None:
        self.watch = watch
        self.detector, self.parts, self.scene, self.name = detector, parts, scene, name
        self.tracker = ForcedTracker(scene, parts, detector.features, config, name, detector.meanwhile)
        self.tracker.count_parts(watch)
        self._prompts, self._batch = prompts, batch_frames
        self._pictures = [scene.picture(t, detector.image_size) for t in range(16)]
        self.next_frame = 0

    def advance(self, count: int) -> list[tuple[Frame, LowResTracks]]:
        """Detect and track the next ``count`` frames."""
        done = []
        self.detector.scene, self.detector.watch = self.scene, self.watch
        stop = self.next_frame + count
        for start in range(self.next_frame, stop, self._batch):
            frames = [self.frame(t) for t in range(start, min(start + self._batch, stop))]
            if self.detector.looks_ahead:
                after = frames[-1].index + 1
                self.detector.prefetch([self.frame(t) for t in range(after, after + len(frames))])
            found = self.detector.detect(frames, self._prompts)
            done += [(f, self.tracker.advance(f, d)) for f, d in zip(frames, found, strict=True)]
        self.detector.catch_up()  # with what was begun for the next call, which is as much as the last call began
        self.next_frame = stop
        return done

    def frame(self, t: int) -> Frame:
        """A picture of the scene's video."""
        side = self.detector.image_size
        return Frame(self.name, t, t / 30, self._pictures[t % 16], (side, side))


@dataclass
class Measured:
    """One case in one mode."""

    objects: int
    prompts: int
    mode: str
    fps: float = 0.0
    """Median over blocks of frames, after the warm-up."""
    frame_ms: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    """Part of the time by stage."""
    state_mb: float = 0.0
    """What the tracker remembers."""
    slope_mb: float | None = None
    """Growth of resident memory, MB per 1,000 frames of this case (all modes together); needs 200 frames and more."""
    peak_mb: float = 0.0
    """Highest resident memory of the process so far; on CUDA, highest allocated memory of this case."""


@dataclass(frozen=True)
class Models:
    """What all cases share."""

    detector: ForcedDetector
    parts: Any
    mask_side: int
    text_width: int
    device: torch.device


def load_models(checkpoint: Checkpoint, config: Config, device: torch.device, dtype: torch.dtype) -> Models:
    """Detector and tracker of a checkpoint, with a detector whose answers can be forced; compiled where that is set."""
    backend = COMPILER if config.device.compile else None
    parts: Any = checkpoint.load_tracker(device, dtype)
    if backend is not None:
        parts = CompiledParts.of(parts, backend)
    return Models(
        ForcedDetector(checkpoint, config.detector, device, dtype, backend),
        parts,
        checkpoint.low_res_size,
        checkpoint.config.detector_config.detr_encoder_config.hidden_size,
        device,
    )


@dataclass(frozen=True)
class BenchResult:
    """All cases, and where they were measured."""

    device: str
    num_frames: int
    rows: list[Measured]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"torch": torch.__version__, **asdict(self)}


def cases(objects: Iterable[int], prompts: Sequence[int]) -> list[tuple[int, int]]:
    """``(objects, prompts)``, without those in which a phrase would have no object."""
    return [(k, p) for k in objects for p in prompts if p <= k]


def run(config: Config, wanted: Sequence[tuple[int, int]], num_frames: int) -> BenchResult:
    """Load the model this configuration names and measure.

    Raises:
        UsageError: as :func:`bench`; also if there is no case. ModelError, DeviceError: the model cannot be loaded.
    """
    if not wanted:
        raise UsageError("no case to measure", "--objects and --prompts", "give at least as many objects as phrases")
    device, dtype = prepare_device(config.device)
    models = load_models(open_checkpoint(config.model), config, device, dtype)
    return BenchResult(device_name(device), num_frames, bench(models, config, wanted, num_frames))


def device_name(device: torch.device) -> str:
    """The card, or how many CPU threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"


def modes(config: TrackerConfig) -> dict[str, TrackerConfig]:
    """The tracker's configuration in each of its modes."""
    if "mode" not in TrackerConfig.model_fields:
        return {"exact": config}
    return {mode: config.model_copy(update={"mode": mode}) for mode in ("exact", "adaptive")}


def bench(models: Models, config: Config, wanted: Iterable[tuple[int, int]], num_frames: int) -> list[Measured]:
    """Measure every case ``(objects, prompts)`` in every mode.

    Raises:
        UsageError: more objects than the model's masks have room for, more phrases than objects, or too few frames.
    """
    if num_frames < 8:
        raise UsageError("too few frames", f"--frames {num_frames}", "8 or more are needed")
    return [row for objects, prompts in wanted for row in _case(models, config, objects, prompts, num_frames)]


def _case(models: Models, config: Config, objects: int, prompts: int, num_frames: int) -> list[Measured]:
    scene = Scene(objects, prompts, models.mask_side)
    if not scene.fits():
        raise UsageError(
            f"no room for {objects} objects", f"masks of {models.mask_side} x {models.mask_side} px", "use fewer"
        )
    phrases = synthetic_prompts(prompts, models.text_width)
    batch = config.detector.batch_frames
    subjects = {
        mode: Subject(
            models.detector, models.parts, scene, phrases, tracker, batch, f"{mode} {scene}", stopwatch(models.device)
        )
        for mode, tracker in modes(config.tracker).items()
    }
    _reset_peak(models.device)
    num_blocks = max(num_frames // batch, 4)
    warm_up = num_blocks // 4
    _take_turns(subjects, warm_up, batch)
    seconds, memory = _take_turns(subjects, num_blocks - 2 * warm_up, batch)
    for subject in subjects.values():
        subject.watch.is_on = True
    _take_turns(subjects, warm_up, batch)
    slope = memory_slope_mb(memory, batch)
    return [_measured(mode, subject, seconds[mode], slope) for mode, subject in subjects.items()]


def stopwatch(device: torch.device) -> Stopwatch:
    """Wall-clock seconds, with all work done."""
    return Stopwatch(time.perf_counter, torch.cuda.synchronize if device.type == "cuda" else lambda: None)


def _take_turns(
    subjects: dict[str, Subject], num_blocks: int, batch: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds per frame of each subject, and resident memory, per block of ``batch`` frames."""
    seconds: dict[str, list[float]] = {mode: [] for mode in subjects}
    memory = []
    for _ in range(num_blocks):
        for mode, subject in subjects.items():
            subject.watch.wait()
            start = time.perf_counter()
            _show(subject, batch)
            subject.watch.wait()
            seconds[mode].append((time.perf_counter() - start) / batch)
        memory.append(rss_mb())
    return seconds, memory


def _show(subject: Subject, count: int) -> None:
    """The next frames, with masks as run lengths."""
    tracked = subject.advance(count)
    with subject.watch.part("render"):
        for frame, low in tracked:
            if len(render(low, frame)) != subject.scene.objects:
                raise RunError("the tracker lost an object of the scene", f"frame {frame.index}")


def _measured(mode: str, subject: Subject, seconds: Sequence[float], slope: float | None) -> Measured:
    parts = subject.watch.seconds
    total = sum(parts.values())
    frame_s = statistics.median(seconds)
    return Measured(
        subject.scene.objects,
        subject.scene.prompts,
        mode,
        fps=1 / frame_s,
        frame_ms=1e3 * frame_s,
        shares={part: s / total for part, s in sorted(parts.items(), key=lambda item: -item[1])},
        state_mb=subject.tracker.num_state_bytes / 1e6,
        slope_mb=slope,
        peak_mb=peak_mb(subject.detector.device),
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Highest allocated memory of a CUDA device since it was reset; elsewhere the process's highest resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def rss_mb() -> float:
    """Resident memory of this process; its peak where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return peak_mb(torch.device("cpu"))


def memory_slope_mb(samples: Sequence[float], frames_per_sample: int) -> float | None:
    """MB per 1,000 frames by least squares; ``None`` for too few frames, where it says nothing."""
    if len(samples) * frames_per_sample < _MIN_SLOPE_FRAMES:
        return None
    at = np.arange(len(samples)) * frames_per_sample / 1000
    return float(np.polyfit(at, samples, 1)[0])


def write_plot(rows: Sequence[Measured], out: Path) -> Path:
    """A PNG: time per frame of every case and mode, by part of the work.

    Raises:
        UsageError: it cannot be written there.
    """
    from pipeline import bench_plot  # needs PyAV, which measuring does not

    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = f"{row.objects} object{'s' * (row.objects > 1)}, {row.prompts} phrase{'s' * (row.prompts > 1)}"
        parts = {part: share * row.frame_ms for part, share in row.shares.items()}
        results.setdefault(name, {})[row.mode] = {
            "wall_ms": row.frame_ms,
            "part_ms": parts,
            "label": f"{row.frame_ms:.0f} ms, {row.fps:.1f} frames/s",
        }
    return bench_plot.write_plot([{"case": name, "contestants": one} for name, one in results.items()], out)


COLUMNS = ("objects", "phrases", "mode", "frames/s", "ms", "state MB", "MB per 1,000 frames", "peak MB", "time goes to")


def cells(row: Measured) -> tuple[str, ...]:
    """One row of the table, as text."""
    parts = ", ".join(f"{name} {share:.0%}" for name, share in row.shares.items() if share >= 0.005)
    slope = "-" if row.slope_mb is None else f"{row.slope_mb:+.1f}"
    numbers = (f"{row.fps:.1f}", f"{row.frame_ms:.1f}", f"{row.state_mb:.2f}", slope)
    return (str(row.objects), str(row.prompts), row.mode, *numbers, f"{row.peak_mb:.0f}", parts)
