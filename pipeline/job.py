"""A job: videos in, a run folder out. The coordinator plans, publishes and reports; an executor does the units."""

from __future__ import annotations

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from configs.load import digest
from configs.schema import Config
from pipeline.assemble import Assembler
from pipeline.decode import local_path, probe, redact, scheme_of
from pipeline.errors import ConfigError, MaskletError, RunInterruptedError, SourceError
from pipeline.sources.file import VideoItem
from pipeline.store import INTERRUPTED, Manifest, RunWriter, VideoEntry, has_more_to_do
from pipeline.telemetry import LOGGER
from workers.plan import chunk_ranges
from workers.units import (
    Unit,
    UnitProgress,
    UnitReport,
    committed,
    fingerprint,
    look_at,
    remove_attempts,
    remove_units_of,
    unit_key,
)

_TELL_EVERY_S = 5.0


class Executor(Protocol):
    """Does units, somewhere."""

    @property
    def num_retries(self) -> int:
        """Attempts beyond a unit's first, so far."""
        ...

    @property
    def num_workers(self) -> int:
        """How many units are done at a time."""
        ...

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do every unit and commit it under ``units``; progress and exactly one report per unit, in any order.

        Closing the generator early commits what was done of the units at hand as ``partial``.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class ProgressListener(Protocol):
    """Is told how a job proceeds. The command line shows bars, a library caller may show nothing."""

    def planned(self, num_videos: int, todo: Sequence[Unit]) -> None:
        """The job has so many videos, of which these units are still to be done."""

    def progress(self, progress: UnitProgress) -> None:
        """A unit got further."""

    def unit_ended(self, report: UnitReport) -> None:
        """A unit ended, well or not."""

    def video_ended(self, entry: VideoEntry) -> None:
        """A video is done, partial or failed; also called for those a resumed run need not repeat."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A listener that shows nothing."""

    def planned(self, num_videos: int, todo: Sequence[Unit]) -> None:
        """Nothing."""

    def progress(self, progress: UnitProgress) -> None:
        """Nothing."""

    def unit_ended(self, report: UnitReport) -> None:
        """Nothing."""

    def video_ended(self, entry: VideoEntry) -> None:
        """Nothing."""


class Job:
    """Tracks a list of videos into one run folder; a bad video fails alone.

    Args:
        config: the effective configuration.
        run: the run folder, created or continued.
        executor: does the work.
    """

    def __init__(self, config: Config, run: RunWriter, executor: Executor) -> None:
        self._config, self._run, self._executor = config, run, executor
        self._units = run.folder / ".units"
        self._assembler = Assembler(config, run.folder, self._units)
        self._videos: dict[str, _Video] = {}
        self._seconds: Counter[str] = Counter()
        self._num_frames = 0
        self._frames: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """Tracked so far, by video and unit, of the videos under way."""
        self._told = time.monotonic()
        self._unsettled: list[tuple[Sequence[UnitReport], VideoEntry]] = []
        """Videos whose entries are not in the saved manifest yet: until then their units stay."""

    def execute(self, items: Sequence[VideoItem], listener: ProgressListener) -> Manifest:
        """Track every video that is not finished yet.

        Raises:
            RunInterruptedError: on Ctrl-C or SIGTERM; what is finished is kept, and a video at hand as ``partial``.
        """
        started = time.perf_counter()
        self._units.mkdir(exist_ok=True)
        remove_attempts(self._units)
        try:
            self._do(items, listener)
        except KeyboardInterrupt:
            self._keep_interrupted(listener)
            raise RunInterruptedError("interrupted", str(self._run.folder), "run the same line with --resume") from None
        except Exception:
            with suppress(MaskletError):
                self._save()
            raise
        return self._complete(items, time.perf_counter() - started)

    def _do(self, items: Sequence[VideoItem], listener: ProgressListener) -> None:
        todo: list[Unit] = []
        self._run.manifest.running = {}
        for item in items:
            if self._run.finished(item.video_id) and not self._has_changed(item):
                listener.video_ended(self._run.entry(item.video_id))
            else:
                todo += self._plan(item, listener)
        todo.sort(key=lambda unit: -unit.cost)
        listener.planned(len(items), todo)
        with closing(self._executor.run(todo, self._units)) as events:
            for event in events:
                if isinstance(event, UnitProgress):
                    self._frames[event.video_id][event.key] = event.num_done
                    listener.progress(event)
                else:
                    self._seconds.update(event.timings_s)
                    self._num_frames += event.num_tracked
                    listener.unit_ended(event)
                    self._collect(event, listener)
                self._tell()

    def _tell(self) -> None:
        """Let the manifest say how far the videos under way are, now and then."""
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S or self._unsettled:
            self._save_if_due()

    def _save_if_due(self) -> None:
        """Write the manifest, unless that was done a moment ago, and settle what is safe with it."""
        if self._run.is_save_due:
            self._save()

    def _save(self) -> None:
        self._told = time.monotonic()
        self._run.manifest.running = self._running()
        self._run.save()
        for reports, entry in self._unsettled:
            self._assembler.settle(reports, entry)
        self._unsettled.clear()

    def _running(self) -> dict[str, dict[str, int]]:
        under_way = {v: video for v, video in self._videos.items() if video.reports or self._frames.get(v)}
        return {video_id: self._progress_of(video_id, video) for video_id, video in under_way.items()}

    def _progress_of(self, video_id: str, video: _Video) -> dict[str, int]:
        frames = self._frames.get(video_id, {}) | {r.key: r.num_tracked for r in video.reports.values()}
        return {"units_done": len(video.reports), "units": video.num_units, "frames": sum(frames.values())}

    def _has_changed(self, item: VideoItem) -> bool:
        """Whether a finished video's source is another one now. One that is gone is not: its rows are right."""
        known = self._run.entry(item.video_id).source_fingerprint
        try:
            exists = bool(scheme_of(item.uri)) or local_path(item.uri).exists()
            if not known or not exists or fingerprint(item.uri) == known:
                return False
        except (SourceError, OSError):
            return False
        LOGGER.warning("%s: the source changed since it was tracked: it is tracked again", item.video_id)
        return True

    def _plan(self, item: VideoItem, listener: ProgressListener) -> list[Unit]:
        """The video's units that are not committed yet; those that are, are collected."""
        plan = (digest(self._config), self._run.manifest.model.get("fingerprint", ""))
        try:
            units = plan_units(item, self._config, plan)
        except ConfigError:
            raise
        except MaskletError as error:
            self._end(VideoEntry(item.video_id, redact(item.uri), "failed", error=str(error)), listener)
            return []
        self._videos[item.video_id] = _Video(item.uri, len(units), units[0].source)
        todo = []
        for unit in units:
            report = committed(self._units, unit.key)
            if report is None or _was_interrupted(report):
                shutil.rmtree(self._units / unit.key, ignore_errors=True)
                todo.append(unit)
            else:
                self._collect(report, listener)
        return todo

    def _collect(self, report: UnitReport, listener: ProgressListener) -> None:
        """Take in a finished unit; with its last one, a video is published."""
        video = self._videos[report.video_id]
        video.reports[report.key] = report
        if len(video.reports) == video.num_units:
            self._publish(self._videos.pop(report.video_id), listener)

    def _publish(self, video: _Video, listener: ProgressListener) -> None:
        """Rows, then the twin's rows, then the manifest; only then the units go, so that no failure costs work.

        Killed before the manifest is written, a resumed run publishes the units again.
        """
        reports = sorted(video.reports.values(), key=lambda r: r.ordinal)
        entry = self._assembler.publish(reports, video.uri)
        entry.source_fingerprint = video.source
        self._end(entry, listener, reports)

    def _end(self, entry: VideoEntry, listener: ProgressListener, reports: Sequence[UnitReport] = ()) -> None:
        self._frames.pop(entry.video_id, None)
        self._run.manifest.running.pop(entry.video_id, None)
        self._run.list_video(entry)
        self._unsettled.append((reports, entry))  # listed now, and safe with the next save
        self._save_if_due()
        listener.video_ended(entry)

    def _keep_interrupted(self, listener: ProgressListener) -> None:
        """What was tracked of a video in one piece is worth showing; resuming does it again. Chunks just stay."""
        for folder in self._units.glob("[!.]*"):
            report = committed(self._units, folder.name)
            video = self._videos.get(report.video_id) if report is not None else None
            if report is not None and video is not None and video.num_units == 1:
                self._collect(report, listener)
        remove_attempts(self._units)
        self._run.manifest.status = "interrupted"
        self._save()

    def _complete(self, items: Sequence[VideoItem], seconds: float) -> Manifest:
        manifest = self._run.manifest
        order = {item.video_id: rank for rank, item in enumerate(items)}
        manifest.videos = sorted(manifest.videos, key=lambda v: order.get(v.video_id, -1))
        manifest.status = "complete"
        manifest.running = {}
        self._account(manifest, seconds)
        self._run.save()
        finished = {v.video_id for v in manifest.videos if not has_more_to_do(v)}
        if len(finished) < len(manifest.videos):
            remove_attempts(self._units)  # what is committed of a failed video need not be done again
            remove_units_of(self._units, finished)
            with suppress(OSError):
                self._units.rmdir()
        else:
            shutil.rmtree(self._units, ignore_errors=True)
        return manifest

    def _account(self, manifest: Manifest, seconds: float) -> None:
        """How this session went; a resumed run's earlier ones are not in it. Stages are seconds of all workers."""
        manifest.timings_s = {
            "total": round(seconds, 3),
            **{name if name != "total" else "busy": round(s, 3) for name, s in self._seconds.items()},
        }
        manifest.counts |= {
            "session_frames": self._num_frames,
            "workers": self._executor.num_workers,
            "retries": self._executor.num_retries,
            "weak_links": sum(bool(link["weak"]) for video in manifest.videos for link in video.links),
        }


@dataclass(slots=True)
class _Video:
    """A video under way: where it comes from, and its units so far."""

    uri: str
    num_units: int
    source: str
    """Its fingerprint when it was planned."""
    reports: dict[str, UnitReport] = field(default_factory=dict)
    """By key."""


def _was_interrupted(report: UnitReport) -> bool:
    return (report.error or "").startswith(INTERRUPTED)


def plan_units(item: VideoItem, config: Config, plan: Sequence[str]) -> list[Unit]:
    """The units of one video: itself, or its chunks.

    Raises:
        SourceError: the video cannot be read.
    """
    state = look_at(item.uri)
    source = state.fingerprint
    if config.chunk.length is None or config.chunk.mode == "sequential":
        key = unit_key(source, None, None, (*plan, item.video_id))
        return [Unit(key, item.video_id, item.uri, cost=state.num_bytes, source=source)]
    ranges = chunk_ranges(config.chunk, config.sampling, probe(item.uri, item.video_id))
    return [
        Unit(
            unit_key(source, start, stop, (*plan, item.video_id)),
            item.video_id,
            item.uri,
            ordinal,
            start,
            stop,
            float(stop - start),
            source,
        )
        for ordinal, (start, stop) in enumerate(ranges)
    ]
