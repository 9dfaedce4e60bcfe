"""Tracking on this machine: one decode process beside this one, the models in this one. The reference executor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType

from configs.schema import Config
from pipeline import decode
from pipeline.errors import UsageError
from pipeline.results import FrameResult
from pipeline.sources.file import VideoItem
from pipeline.store import VideoEntry
from pipeline.telemetry import StageTimes
from pipeline.types import BoxPrompt, Prompts
from workers.decode_worker import DecodeProcess
from workers.gpu_worker import GpuWorker
from workers.plan import frame_range


class LocalExecutor:
    """Tracks videos one after another. A context manager; leaving it stops the decode process."""

    def __init__(self, config: Config, prompts: Prompts, boxes: list[BoxPrompt]) -> None:
        self._config, self._boxes = config, boxes
        self._worker = GpuWorker(config, prompts)
        self._decoder = DecodeProcess(config.decode)

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.close()

    def run(self, item: VideoItem) -> VideoRun:
        """Probe a video; iterating over the answer tracks it.

        Raises:
            SourceError: the video cannot be read.
        """
        table = decode.probe(item.uri, item.video_id)
        if self._boxes:
            self._add_exemplars(table)
        return VideoRun(self._config, self._worker, self._decoder, item, table)

    def _add_exemplars(self, table: decode.FrameTable) -> None:
        """Boxes are drawn on the first video's frames and then hold for all videos."""
        for index in sorted({b.frame for b in self._boxes}):
            if index >= len(table):
                raise UsageError(f"--box names frame {index}", table.info.uri, f"the video has {len(table)} frames")
            frame = next(decode.read(table, index, index + 1, size=self._worker.input_size))
            self._worker.add_exemplars(frame, [b for b in self._boxes if b.frame == index])
        self._boxes = []


class VideoRun:
    """One video on its way: iterate for the results, then ask for its :meth:`entry`."""

    def __init__(
        self,
        config: Config,
        worker: GpuWorker,
        decoder: DecodeProcess,
        item: VideoItem,
        table: decode.FrameTable,
    ) -> None:
        self._config, self._worker, self._decoder, self._item, self.table = config, worker, decoder, item, table
        self.start, self.stop = frame_range(config.sampling, table)
        self.num_expected = len(range(self.start, self.stop, config.sampling.stride))
        """Frames that should come out."""
        self._tracked = 0
        self._masklets = 0
        self._seconds = 0.0
        worker.times = StageTimes()

    def __iter__(self) -> Iterator[FrameResult]:
        info = self.table.info
        frames = self._decoder.frames(
            self.table, self.start, self.stop, stride=self._config.sampling.stride, size=self._worker.input_size
        )
        started = time.perf_counter()
        for result in self._worker.follow(frames, self._item.video_id, (info.height, info.width)):
            self._tracked += 1
            self._masklets = max(self._masklets, int(result.masklet_id.max(initial=0)))
            self._seconds = time.perf_counter() - started
            yield result

    def entry(self, error: str | None = None) -> VideoEntry:
        """How the video ended. ``error`` is why it stopped early, if it did."""
        info, report = self.table.info, self._decoder.report()
        partial = error is not None or report.status == "partial"
        decoders = dict(report.frames_by_decoder)
        known = report.num_decoded if report.status == "partial" and error is None else None
        return VideoEntry(
            self._item.video_id,
            info.uri,
            "partial" if partial else "done",
            info.width,
            info.height,
            f"{info.fps.numerator}/{info.fps.denominator}" if info.fps else None,
            num_frames=self.start + known * self._config.sampling.stride if known is not None else len(self.table),
            num_tracked=self._tracked,
            num_masklets=self._masklets,
            decoder=max(decoders, key=lambda name: decoders[name], default=""),
            error=error or report.message or None,
            decoders=decoders,
            duration_s=info.duration_s,
            counters=dict(self._worker.counters),
            timings_s={"total": round(self._seconds, 3), **self._worker.times.rounded()},
        )
