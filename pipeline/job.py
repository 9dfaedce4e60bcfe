"""A job: videos in, a run folder out. The coordinator plans, publishes and reports; an executor does the units."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from configs.load import digest
from configs.schema import Config
from pipeline.decode import redact
from pipeline.errors import RunInterruptedError
from pipeline.sources.file import VideoItem
from pipeline.store import INTERRUPTED, Manifest, RunWriter, VideoEntry
from workers.units import Unit, UnitProgress, UnitReport, committed, fingerprint, publish, remove_attempts, unit_key


class Executor(Protocol):
    """Does units, somewhere."""

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

    def progress(self, progress: UnitProgress) -> None:
        """A unit got further."""

    def video_ended(self, entry: VideoEntry) -> None:
        """A video is done, partial or failed; also called for those a resumed run need not repeat."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A listener that shows nothing."""

    def progress(self, progress: UnitProgress) -> None:
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

    def execute(self, items: Sequence[VideoItem], listener: ProgressListener) -> Manifest:
        """Track every video that is not finished yet.

        Raises:
            RunInterruptedError: on Ctrl-C or SIGTERM; what is finished is kept, and the video at hand as ``partial``.
        """
        started = time.perf_counter()
        self._units.mkdir(exist_ok=True)
        remove_attempts(self._units)
        uris = {item.video_id: item.uri for item in items}
        try:
            self._do(items, uris, listener)
        except KeyboardInterrupt:
            self._keep_interrupted(uris, listener)
            raise RunInterruptedError("interrupted", str(self._run.folder), "run the same line with --resume") from None
        return self._complete(items, time.perf_counter() - started)

    def _do(self, items: Sequence[VideoItem], uris: dict[str, str], listener: ProgressListener) -> None:
        todo = []
        for item in items:
            if self._run.finished(item.video_id):
                listener.video_ended(self._run.entry(item.video_id))
                continue
            unit = self._unit(item)
            report = committed(self._units, unit.key)
            if report is not None and not (report.error or "").startswith(INTERRUPTED):
                self._publish(report, uris, listener)
            else:
                shutil.rmtree(self._units / unit.key, ignore_errors=True)
                todo.append(unit)
        with closing(self._executor.run(todo, self._units)) as events:
            for event in events:
                if isinstance(event, UnitProgress):
                    listener.progress(event)
                else:
                    self._publish(event, uris, listener)

    def _unit(self, item: VideoItem) -> Unit:
        plan = (digest(self._config), self._run.manifest.model.get("fingerprint", ""))
        path = Path(item.uri)
        return Unit(
            unit_key(fingerprint(item.uri), None, None, (*plan, item.video_id)),
            item.video_id,
            item.uri,
            cost=float(path.stat().st_size) if path.is_file() else 0.0,
        )

    def _publish(self, report: UnitReport, uris: dict[str, str], listener: ProgressListener) -> None:
        """Make a finished unit's rows the video's, and list it."""
        if report.status != "failed":
            publish(self._units, report.key, self._run.folder / "masklets" / report.video_id)
        entry = entry_of(report, uris[report.video_id])
        self._run.end_video(entry)
        listener.video_ended(entry)

    def _keep_interrupted(self, uris: dict[str, str], listener: ProgressListener) -> None:
        """What was tracked of the video at hand is worth keeping; resuming does that video again."""
        for folder in self._units.iterdir():
            report = committed(self._units, folder.name) if not folder.name.startswith(".") else None
            if report is not None:
                self._publish(report, uris, listener)
        remove_attempts(self._units)
        self._run.manifest.status = "interrupted"
        self._run.save()

    def _complete(self, items: Sequence[VideoItem], seconds: float) -> Manifest:
        manifest = self._run.manifest
        order = {item.video_id: rank for rank, item in enumerate(items)}
        manifest.videos.sort(key=lambda v: order.get(v.video_id, -1))
        manifest.status = "complete"
        manifest.timings_s = {"total": round(seconds, 3)}
        self._run.save()
        shutil.rmtree(self._units, ignore_errors=True)
        return manifest


def entry_of(report: UnitReport, uri: str) -> VideoEntry:
    """A whole video's manifest entry from its only unit's report."""
    return VideoEntry(
        report.video_id,
        redact(uri),
        report.status,
        report.width,
        report.height,
        report.fps,
        report.num_frames,
        report.num_tracked,
        report.num_masklets,
        max(report.decoders, key=lambda name: report.decoders[name], default=""),
        report.error,
        report.decoders,
        report.duration_s,
        report.counters,
        report.timings_s,
    )
