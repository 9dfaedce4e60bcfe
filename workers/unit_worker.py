"""Does units: decodes, tracks and commits, in one process with a decode process beside it. A plain class, no Ray."""

from __future__ import annotations

import copy
import errno
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from threading import Event
from types import TracebackType

from configs.schema import Config
from pipeline import decode
from pipeline.errors import (
    ConfigError,
    DecodeError,
    DeviceError,
    MaskletError,
    NoVideoError,
    SourceChangedError,
    SourceError,
    UsageError,
)
from pipeline.results import FrameResult
from pipeline.sources.file import VideoItem
from pipeline.store import INTERRUPTED, VideoWriter, cannot_write
from pipeline.telemetry import StageTimes
from pipeline.types import BoxPrompt, Prompts
from workers.decode_worker import DecodeProcess
from workers.gpu_worker import GpuWorker
from workers.plan import frame_range, step_cuts
from workers.steps import Steps
from workers.units import LOOKS, Unit, UnitFolder, UnitProgress, UnitReport, absent, failed, fingerprint
from workers.video_state import VideoState

_PROGRESS_EVERY_S = 0.5
_TABLES_KEPT = 4
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Trying again at once would not help."""


class UnitWorker:
    """Tracks units one after another with models loaded once. A context manager; leaving it ends the decode process.

    Args:
        config: the effective configuration.
        prompts: what to look for, already encoded.
        boxes: exemplars, drawn on frames of ``exemplar_uri``.
        exemplar_uri: the video the boxes are drawn on; needed with ``boxes``.
        decoder: a decode process that is starting already; the worker owns it from now on.
    """

    def __init__(
        self,
        config: Config,
        prompts: Prompts,
        boxes: list[BoxPrompt],
        exemplar_uri: str = "",
        decoder: DecodeProcess | None = None,
    ) -> None:
        self._config = config
        self.progress_every_s = _PROGRESS_EVERY_S
        """Whoever takes turns with siblings wants a turn per frame: 0."""
        self._stopping = Event()
        self._tables: dict[tuple[str, str, str], decode.FrameTable] = {}
        """Of the sources seen last: the pieces of a video share one, and listing frames reads the whole file."""
        self._decoder = decoder or start_decoder(config)
        try:
            self._worker = GpuWorker(config, prompts)
            if boxes:
                self._add_exemplars(boxes, exemplar_uri)
        except BaseException:
            self._decoder.close()
            raise

    def sibling(self) -> UnitWorker:
        """Another worker to take turns with, on the same models; it has a decode process of its own."""
        other = copy.copy(self)
        other._decoder, other._worker = start_decoder(self._config), self._worker.sibling()
        return other

    def __enter__(self) -> UnitWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decode process."""
        self._decoder.close()

    def stop(self) -> None:
        """Make the unit at hand commit what it has and raise ``KeyboardInterrupt``; may be called from any thread."""
        self._stopping.set()

    def results(self, item: VideoItem) -> Iterator[FrameResult]:
        """Track one video and hand out its frames instead of writing them; flat memory.

        Raises:
            SourceError, DecodeError: the video cannot be read, or not to its end.
        """
        table = decode.probe(item.uri, item.video_id)
        start, stop = frame_range(self._config.sampling, table)
        yield from self._follow(table, start, stop, self._worker.begin(table.stream_id, table.source_size))

    def process(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do a unit and commit it under ``units``; yields progress, and its report at the end.

        A source that cannot be read is a report with status ``failed``, not an error, and so is a device without the
        memory for this video; ``retry`` says whether another attempt may do better.

        Raises:
            KeyboardInterrupt: after committing what was done as ``partial``.
            ConfigError: what was asked for holds for no video.
        """
        try:
            yield from self._attempt(unit, units)
            return
        except ConfigError:
            raise
        except Exception as error:
            report = _report_of(error, unit, units)
            if report is None:
                raise
        # Outside of the handler: the error's traceback holds the tensors of the attempt.
        if report.retry == "afresh":
            _release_memory()
        yield report

    def _attempt(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        folder = UnitFolder(units, unit.key)
        try:
            yield from self._process(unit, units, folder)
        finally:
            folder.discard()

    def _process(self, unit: Unit, units: Path, folder: UnitFolder) -> Generator[UnitProgress | UnitReport]:
        table = self._probe(unit)
        sampling, chunk = self._config.sampling, self._config.chunk
        start, stop = frame_range(sampling, table)
        if unit.start is not None and unit.stop is not None:
            start, stop = unit.start, unit.stop
        report = _new_report(unit, table, start, stop)
        expected = len(range(start, stop, sampling.stride))
        cuts = () if unit.start is not None else step_cuts(chunk, sampling, self._config.detector.batch_frames, table)
        steps = Steps(units, unit.key, cuts, sampling.stride)
        state = self._worker.begin(table.stream_id, table.source_size)
        first = steps.resume(folder, state, report)
        self._worker.times = StageTimes({k: v for k, v in report.timings_s.items() if k != "total"})
        with self._writer(folder, steps.num_parts) as writer:
            try:
                frames = self._follow(
                    table, first, stop, state, lambda i: steps.after_frame(i, writer, state, report, folder)
                )
                yield from self._write(unit, frames, writer, report, expected)
            except (KeyboardInterrupt, GeneratorExit):
                report.error = f"{INTERRUPTED} after {report.num_tracked} of {expected} frames"
                writer.commit()
                self._commit(report, folder, state, first)
                raise
        if unit.start is not None:
            state.looks.save(folder.temporary / LOOKS, state.numbering.ids)
        self._commit(report, folder, state, first)
        steps.discard()
        yield report

    def _probe(self, unit: Unit) -> decode.FrameTable:
        """The frames of a unit's source, which must be what the plan was made for."""
        known = fingerprint(unit.uri, is_fresh=True)
        if unit.source and known != unit.source:
            decode.probe(unit.uri, unit.video_id)  # one that is gone has better words for it
            raise SourceChangedError("the file changed while the job ran", decode.redact(unit.uri), "add --resume")
        name = (unit.uri, unit.video_id, known)
        table = self._tables.pop(name, None) or decode.probe(unit.uri, unit.video_id)
        self._tables[name] = table
        while len(self._tables) > _TABLES_KEPT:
            del self._tables[next(iter(self._tables))]
        return table

    def _writer(self, folder: UnitFolder, num_parts: int) -> VideoWriter:
        output = self._config.output
        return VideoWriter(
            folder.masklets,
            rows_per_part=output.rows_per_part,
            frames_per_part=output.frames_per_part,
            num_parts=num_parts,
        )

    def _write(
        self, unit: Unit, frames: Iterator[FrameResult], writer: VideoWriter, report: UnitReport, expected: int
    ) -> Iterator[UnitProgress]:
        told = time.perf_counter()
        started = told - report.timings_s.get("total", 0.0)
        yield UnitProgress(unit.key, unit.video_id, report.num_tracked, expected, 0)
        for result in frames:
            writer.write(result)
            report.num_tracked += 1
            report.num_masklets = max(report.num_masklets, int(result.masklet_id.max(initial=0)))
            if self._stopping.is_set():
                raise KeyboardInterrupt
            now = time.perf_counter()
            report.timings_s = {"total": round(now - started, 3)} | self._worker.times.rounded()
            if now - told >= self.progress_every_s:
                told = now
                yield UnitProgress(
                    unit.key, unit.video_id, report.num_tracked, expected, len(result), self._slowest_stage()
                )

    def _slowest_stage(self) -> str:
        seconds = self._worker.times.seconds
        return max(seconds, key=lambda name: seconds[name], default="")

    def _follow(
        self,
        table: decode.FrameTable,
        start: int,
        stop: int,
        state: VideoState,
        after_frame: Callable[[int], None] | None = None,
    ) -> Iterator[FrameResult]:
        frames = self._decoder.frames(
            table, start, stop, stride=self._config.sampling.stride, size=self._worker.input_size
        )
        return self._worker.follow(frames, state, after_frame)

    def _commit(self, report: UnitReport, folder: UnitFolder, state: VideoState, first: int) -> None:
        """Add what decoder and worker know at the end, and make the unit count. ``first``: the frame it started at."""
        decoded = self._decoder.report()
        report.decoders = dict(decoded.frames_by_decoder)
        report.counters = state.counters
        report.timings_s |= self._worker.times.rounded()
        if report.error is None and decoded.status == "partial":
            report.error = decoded.message
            report.num_frames = first + decoded.num_decoded * self._config.sampling.stride
        report.status = "partial" if report.error else "done"
        folder.commit(report)

    def _add_exemplars(self, boxes: list[BoxPrompt], uri: str) -> None:
        """The boxes are drawn on one video's frames and hold for all videos."""
        table = decode.probe(uri, "exemplar")
        for index in sorted({b.frame for b in boxes}):
            if index >= len(table):
                raise UsageError(f"--box names frame {index}", uri, f"the video has {len(table)} frames")
            frame = next(decode.read(table, index, index + 1, size=self._worker.input_size, decoder="pyav"))
            self._worker.add_exemplars(frame, [b for b in boxes if b.frame == index])


def _report_of(error: Exception, unit: Unit, units: Path) -> UnitReport | None:
    """The report of a unit that failed in a way that is understood; ``None``: nobody foresaw this."""
    if isinstance(error, MaskletError):
        if isinstance(error, DeviceError):
            return failed(unit, str(error), "afresh")
        is_around = isinstance(error, SourceError | DecodeError) and _is_around(error, unit)
        return failed(unit, str(error), "elsewhere" if is_around else "")
    if isinstance(error, OSError):
        return failed(unit, str(cannot_write(error, units.parent)), "elsewhere") if error.errno in _NO_ROOM else None
    if not isinstance(error, RuntimeError):
        return None
    from pipeline.device_memory import is_out_of_memory, out_of_memory  # torch: not for scripted detections

    return failed(unit, str(out_of_memory(error)), "afresh") if is_out_of_memory(error) else None


def _is_around(error: SourceError | DecodeError, unit: Unit) -> bool:
    """Whether network, mount or disk failed and not the video: it may be read elsewhere, or a moment later."""
    if isinstance(error, NoVideoError | SourceChangedError):
        return False
    cause = error.__cause__
    if decode.scheme_of(unit.uri):
        return not isinstance(cause, FileNotFoundError | ValueError)  # the latter: what came is no video
    was_there = unit.source not in ("", absent(unit.uri))
    return isinstance(cause, OSError) or (was_there and not decode.local_path(unit.uri).exists())


def _release_memory() -> None:
    from pipeline.device_memory import release_memory

    release_memory()


def start_decoder(config: Config) -> DecodeProcess:
    """A decode process that gets ready while the models load: both take seconds."""
    decoder = DecodeProcess(config.decode)
    if config.detector.detections is None:
        decoder.warm_up()
    return decoder


def _new_report(unit: Unit, table: decode.FrameTable, start: int, stop: int) -> UnitReport:
    info = table.info
    return UnitReport(
        unit.key,
        unit.video_id,
        unit.ordinal,
        "done",
        start,
        stop,
        info.width,
        info.height,
        f"{info.fps.numerator}/{info.fps.denominator}" if info.fps else None,
        num_frames=len(table),
        duration_s=info.duration_s,
    )
