"""A job: videos in, a run folder out. The coordinator plans, commits and reports; executors do the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from configs.schema import Config
from pipeline.errors import ConfigError, DeviceError, RunInterruptedError, MaskletError, ModelError
from pipeline.results import FrameResult
from pipeline.sources.file import VideoItem
from pipeline.store import INTERRUPTED, Manifest, RunWriter, VideoEntry, VideoWriter
from workers.local_executor import LocalExecutor, VideoRun

LOGGER = logging.getLogger("masklet.job")


class ProgressListener(Protocol):
    """Is told how a job proceeds. The command line shows bars, a library caller may show nothing."""

    def video_started(self, video_id: str, num_frames: int) -> None:
        """A video begins; ``num_frames`` results are expected."""

    def frame_done(self, result: FrameResult) -> None:
        """One more frame is final."""

    def video_ended(self, entry: VideoEntry) -> None:
        """A video is done, partial or failed; also called for those a resumed run need not repeat."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A listener that shows nothing."""

    def video_started(self, video_id: str, num_frames: int) -> None:
        """Nothing."""

    def frame_done(self, result: FrameResult) -> None:
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

    def __init__(self, config: Config, run: RunWriter, executor: LocalExecutor) -> None:
        self._config, self._run, self._executor = config, run, executor

    def execute(self, items: Sequence[VideoItem], listener: ProgressListener) -> Manifest:
        """Track every video that is not finished yet.

        Raises:
            RunInterruptedError: on Ctrl-C or SIGTERM; everything finished is kept, and the video at hand as ``partial``.
        """
        started = time.perf_counter()
        manifest = self._run.manifest
        try:
            for item in items:
                if not self._run.finished(item.video_id):
                    self._end(self._track(item, listener), listener)
                else:
                    listener.video_ended(next(v for v in manifest.videos if v.video_id == item.video_id))
        except KeyboardInterrupt:
            manifest.status = "interrupted"
            self._run.save()
            raise RunInterruptedError("interrupted", str(self._run.folder), "run the same line with --resume") from None
        order = {item.video_id: rank for rank, item in enumerate(items)}
        manifest.videos.sort(key=lambda v: order.get(v.video_id, -1))
        manifest.status = "complete"
        manifest.timings_s = {"total": round(time.perf_counter() - started, 3)}
        self._run.save()
        return manifest

    def _end(self, entry: VideoEntry, listener: ProgressListener) -> None:
        self._run.end_video(entry)
        listener.video_ended(entry)
        if (entry.error or "").startswith(INTERRUPTED):
            raise KeyboardInterrupt

    def _track(self, item: VideoItem, listener: ProgressListener) -> VideoEntry:
        """Track one video; its errors become its entry, everyone's errors (configuration, model, device) are raised."""
        try:
            video = self._executor.run(item)
        except (ConfigError, ModelError, DeviceError):
            raise
        except MaskletError as error:
            return VideoEntry(item.video_id, item.uri, "failed", error=str(error))
        listener.video_started(item.video_id, video.num_expected)
        return self._write(item, video, listener)

    def _write(self, item: VideoItem, video: VideoRun, listener: ProgressListener) -> VideoEntry:
        output = self._config.output
        try:
            with self._run.video(
                item.video_id, rows_per_part=output.rows_per_part, frames_per_part=output.frames_per_part
            ) as writer:
                return self._drain(video, writer, listener)
        except DeviceError:
            raise
        except MaskletError as error:
            return VideoEntry(item.video_id, item.uri, "failed", error=str(error))

    @staticmethod
    def _drain(video: VideoRun, writer: VideoWriter, listener: ProgressListener) -> VideoEntry:
        try:
            for result in video:
                writer.write(result)
                listener.frame_done(result)
        except KeyboardInterrupt:
            done = video.entry()
            return video.entry(f"{INTERRUPTED} after {done.num_tracked} of {video.num_expected} frames")
        return video.entry()
