"""Decoding in a CPU process of its own: decord can hang, crash and grow, and only killing the process helps.

The parent plans the segments, so it always knows what is left: a killed process costs a restart, not a frame.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from configs.schema import DecodeConfig
from pipeline.decode import (
    DecodeReport,
    FrameTable,
    Segment,
    expected_frames,
    make_frame,
    make_report,
    plan_segments,
)
from pipeline.errors import DecodeError
from pipeline.types import Frame
from workers.decode_child import Done, Failed, Job, WarmUp, pack
from workers.decode_pump import Child, Frames, Lost, Pump

MAX_DECORD_KILLS = 2
"""After so many lost processes in one video decord gets no more of it."""
MAX_TRIES = 2
"""PyAV gets so many tries at a frame; then the rest of the video is given up."""


@dataclass(slots=True)
class _Progress:
    """Where one video stands."""

    next_index: int
    segments: tuple[Segment, ...]
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kills: int = 0
    tries: int = 0
    """Processes that PyAV has lost since the last frame."""

    def replan(self, reason: str) -> None:
        """After a lost process: what is left, with the segment that it had in hand given to PyAV."""
        self.kills += 1
        rest = [Segment(max(s.start, self.next_index), s.stop, s.decoder) for s in self.segments]
        rest = [s for s in rest if s.start < s.stop]
        if not rest:
            self.segments = ()
            return
        current = rest[0]
        self.notes.append(f"the process decoding frames {current.start}..{current.stop} by {current.decoder} {reason}")
        self.tries += current.decoder != "decord"
        if self.tries >= MAX_TRIES:
            self.segments = ()
            return
        lowered = len(rest) if self.kills >= MAX_DECORD_KILLS else 1
        self.segments = tuple(_by_pyav(s) if i < lowered else s for i, s in enumerate(rest))


def _by_pyav(segment: Segment) -> Segment:
    return Segment(segment.start, segment.stop, "pyav") if segment.decoder == "decord" else segment


class DecodeProcess:
    """Reads videos, one after another, in a process of its own. A context manager.

    The process starts with the first video (or :meth:`warm_up`) and serves the next ones too; it dies with this one.
    Not for use by several threads at once.
    """

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config
        self._child: Child | None = None
        self._pump: Pump | None = None
        self._report = DecodeReport()

    def __enter__(self) -> DecodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the decode process, or ``None`` while there is none."""
        return self._child.pid if self._child is not None and self._child.is_alive else None

    def warm_up(self) -> None:
        """Start the process and let it load what resizing needs, while the caller does something else."""
        if self._child is None:
            self._child = Child()
            self._child.connection.sendall(pack(WarmUp()))

    def frames(
        self,
        table: FrameTable,
        start: int = 0,
        stop: int | None = None,
        *,
        stride: int = 1,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Frame]:
        """Frames ``start, start + stride, ... < stop``, upright RGB, scaled to ``size`` ``(h, w)`` if given.

        The same frames as :func:`pipeline.decode.read` gives. A process that hangs, crashes or grows too large is
        replaced, and PyAV goes on with its segment from the first frame not yet delivered. Leaving the iteration early
        ends it.

        Raises:
            DecodeError: nothing could be decoded, or decord was demanded for a source it may not have.
            SourceError: the file cannot be opened any more, or has changed.
        """
        stop = len(table) if stop is None else min(stop, len(table))
        config = self._config
        segments = plan_segments(
            table, start, stop, stride, config.decoder, config.segment_frames, config.segment_budget_mb
        )
        self._report = DecodeReport()
        return self._frames(
            table, _Progress(start, segments), stride, size, expected_frames(table, start, stop, stride)
        )

    def report(self) -> DecodeReport:
        """How the last video went so far; final once its frames are exhausted."""
        return self._report

    def close(self, deadline_s: float = 2.0) -> None:
        """End the process; it is killed if it has not gone after ``deadline_s``."""
        self._stop_pump()
        if self._child is not None:
            self._child.stop(deadline_s)
            self._child = None

    def _frames(
        self, table: FrameTable, progress: _Progress, stride: int, size: tuple[int, int] | None, expected: int
    ) -> Iterator[Frame]:
        try:
            while progress.segments:
                job = Job(table, progress.segments, stride, size, self._config.batch_frames)
                yield from self._attempt(job, progress)
        finally:
            self._stop_pump()
            self._report = make_report(table, progress.counts, expected, progress.notes, progress.kills)
        if expected and not progress.counts:
            raise DecodeError("not one frame of it could be decoded", table.info.uri, self._report.message)

    def _attempt(self, job: Job, progress: _Progress) -> Generator[Frame]:
        """Let the process work until it is done or lost; ``progress`` says what is left afterwards."""
        for arrival in self._start(job):
            if isinstance(arrival, Frames):
                progress.tries = 0
                for index, image in zip(arrival.indices, arrival.images, strict=True):
                    progress.next_index = index + job.stride
                    progress.counts[arrival.decoder] = progress.counts.get(arrival.decoder, 0) + 1
                    yield make_frame(job.table, index, image)
            elif isinstance(arrival, Lost):
                progress.replan(arrival.reason)
                self._child = None
            elif isinstance(arrival, Failed):
                raise arrival.error
            elif isinstance(arrival, Done):
                progress.notes.extend(arrival.notes)
                progress.segments = ()

    def _start(self, job: Job) -> Pump:
        self._stop_pump()
        if self._child is None or not self._child.is_alive:
            self.close()
            self._child = Child()
        self._pump = Pump(self._child, self._config, job)
        self._pump.start()
        return self._pump

    def _stop_pump(self) -> None:
        """End the listening thread; if the process had work left, it is gone afterwards."""
        if self._pump is not None:
            self._pump.stop()
            self._pump = None
        if self._child is not None and not self._child.is_alive:
            self._child = None
