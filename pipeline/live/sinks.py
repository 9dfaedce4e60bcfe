"""Where rows and events of live streams go. Every sink works behind a bounded queue in a thread of its own.

Tracking never waits for a sink: when its queue is full, what waited longest is dropped and counted. A sink that fails
is tried again with the next item. What ``--sink`` takes stands in :data:`SPECS`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

from pipeline.errors import UsageError
from pipeline.live.checkpoint import Past
from pipeline.live.events import Event, LiveResult
from pipeline.sources.live_redact import redact, scrub, secrets_of

LOGGER = logging.getLogger("masklet.live")
Item = LiveResult | Event
SPECS = (
    "jsonl:-",
    "jsonl:PATH",
    "http://URL",
    "https://URL",
    "parquet:DIR",
    "mp4:PATH",
    "rtsp://HOST/PATH",
)
"""What ``--sink`` takes. A ``{id}`` in a path or address stands for the camera's id."""
_COMPLAIN_EVERY_S = 30.0
_FLUSH_AGAIN_S = 1.0


class LiveSink(Protocol):
    """Takes what streams give out, in order for each stream. Called from one thread only."""

    wants_pictures: bool
    """Whether it draws: pictures are only kept for such sinks."""

    def write(self, items: Sequence[Item]) -> int:
        """Take these; returns how many were lost. May block and may raise ``OSError``: then all of them are lost."""
        ...

    def flush(self) -> None:
        """Make safe what was taken."""
        ...

    def close(self) -> None:
        """Flush and finish."""
        ...


class Handover(Protocol):
    """What a service hands its rows to: an :class:`Outlet`, or a relay to another process."""

    @property
    def name(self) -> str:
        """For logs and metrics, without credentials."""
        ...

    @property
    def num_written(self) -> int:
        """Items that were taken."""
        ...

    @property
    def num_lost(self) -> int:
        """Items that were not."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether the reader has left for good."""
        ...

    @property
    def wants_pictures(self) -> bool:
        """Whether it draws."""
        ...

    @property
    def depth(self) -> int:
        """Items that wait."""
        ...

    def put(self, item: Item) -> None:
        """Take an item; never blocks."""
        ...

    def flush(self) -> threading.Event:
        """Make safe everything put so far; the event is set when it is."""
        ...

    def close(self, timeout_s: float) -> None:
        """Finish."""
        ...

    def past(self, stream_id: str) -> Past:
        """What it has of a stream from an earlier run."""
        ...

    def status(self) -> dict[str, object]:
        """As the page shows it."""
        ...


class Outlet:
    """A sink with its queue and its thread.

    Args:
        name: for logs and metrics, without credentials.
        sink: does the work.
        capacity: items that may wait.
        batch: items per call of the sink.
        secrets: what no message may hold.
    """

    def __init__(
        self, name: str, sink: LiveSink, *, capacity: int, batch: int = 64, secrets: frozenset[str] = frozenset()
    ) -> None:
        self.name, self._sink, self._capacity, self._batch = name, sink, capacity, batch
        self._secrets = secrets
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._num_put = self._num_out = 0
        self._flushes: list[tuple[int, threading.Event]] = []
        """Up to which item everything is to be safe, and who wants to know."""
        self._flush_at_s = 0.0
        self._is_closing = False
        self._complained_s = 0.0
        self.num_written = 0
        self.num_lost = 0
        self.is_gone = False
        """Whoever read our stdout has left (``| head``)."""
        self.error = ""
        """Why the last call failed; empty while it works."""
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    @property
    def wants_pictures(self) -> bool:
        """Whether the sink draws."""
        return self._sink.wants_pictures

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._items)

    def status(self) -> dict[str, object]:
        """As the page shows it."""
        counts = {"waiting": self.depth, "written": self.num_written, "lost": self.num_lost}
        return {"sink": self.name, **counts, "repeated": self.num_repeated, "error": self.error}

    @property
    def num_repeated(self) -> int:
        """Frames that were handed out again after a restart and not written twice."""
        return int(getattr(self._sink, "num_repeated", 0))

    def past(self, stream_id: str) -> Past:
        """What the sink has of a stream from an earlier run; nothing if it cannot tell."""
        known = getattr(self._sink, "past", None)
        return known(stream_id) if known is not None else Past()

    def put(self, item: Item) -> None:
        """Queue an item; never blocks."""
        if isinstance(item, LiveResult) and not self._sink.wants_pictures and item.picture is not None:
            item = replace(item, picture=None)
        with self._changed:
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self._num_out += 1
                self.num_lost += 1
            self._items.append(item)
            self._num_put += 1
            self._changed.notify()

    def flush(self) -> threading.Event:
        """Make safe everything queued so far; the event is set when it is. What is queued later does not defer it."""
        with self._changed:
            # A sink that is stuck gathers no more than two.
            done = self._flushes.pop()[1] if len(self._flushes) > 1 else threading.Event()
            self._flushes.append((self._num_put, done))
            self._changed.notify()
        return done

    def close(self, timeout_s: float) -> None:
        """Finish; what cannot be written in time is counted as lost."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._changed:
                lost = len(self._items)
                self.num_lost += lost
                self._items.clear()
            LOGGER.error("sink %s did not finish in %g s; %d items were lost", self.name, timeout_s, lost)

    def _run(self) -> None:
        while True:
            items, is_due, is_last = self._next()
            if items:
                self._write(items)
            if is_due and not is_last:
                self._flush()
            if is_last:
                if self._attempt(self._sink.close):
                    self._tell(self._num_out)
                return

    def _next(self) -> tuple[list[Item], bool, bool]:
        """Waits for items, a flush that is due or the end."""
        with self._changed:
            while not (self._items or self._is_closing or self._is_due()):
                self._changed.wait(_FLUSH_AGAIN_S if self._flushes else None)
            items = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
            self._num_out += len(items)
            return items, self._is_due(), self._is_closing and not items

    def _is_due(self) -> bool:
        is_time = time.monotonic() >= self._flush_at_s
        return is_time and bool(self._flushes) and self._flushes[0][0] <= self._num_out

    def _flush(self) -> None:
        """Flush, or try again in a while."""
        number = self._num_out  # only put changes it meanwhile, by what it drops: that is not waited for either
        if self._attempt(self._sink.flush):
            self._tell(number)
        else:
            self._flush_at_s = time.monotonic() + _FLUSH_AGAIN_S

    def _tell(self, number: int) -> None:
        with self._changed:
            safe = [done for wanted, done in self._flushes if wanted <= number]
            self._flushes = [(wanted, done) for wanted, done in self._flushes if wanted > number]
        for done in safe:
            done.set()

    def _write(self, items: list[Item]) -> None:
        try:
            lost = self._sink.write(items)
            self.error = ""
        except Exception as error:
            lost = len(items)
            has_reader = getattr(self._sink, "has_reader", False)
            self.is_gone = self.is_gone or (has_reader and isinstance(error, BrokenPipeError))
            self._complain(error)
            time.sleep(min(0.5, 0.05 * len(items)))
        with self._changed:  # put counts too, from another thread
            self.num_lost += lost
            self.num_written += len(items) - lost

    def _attempt(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: Exception) -> None:
        kind = type(error).__name__
        text = " ".join(str(getattr(error, "strerror", None) or error or kind).split())
        self.error = scrub(text, self._secrets, kind)
        if self.is_gone:
            return
        if time.monotonic() - self._complained_s > _COMPLAIN_EVERY_S or not self._complained_s:
            self._complained_s = time.monotonic()
            LOGGER.error("sink %s: %s; %d items lost so far", self.name, self.error, self.num_lost)


class JsonlSink:
    """One JSON object per line: ``"type": "masklet"`` rows with the columns of a run, and ``"type": "event"``.

    ``-`` is stdout. A file is appended to, and opened again when it was moved away (log rotation).
    """

    wants_pictures = False

    def __init__(self, path: str) -> None:
        self._path = None if path == "-" else Path(path)
        self.has_reader = self._path is None
        """Whether somebody reads along who may leave."""
        self._file: IO[str] | None = None

    def write(self, items: Sequence[Item]) -> int:
        """Append the rows and events."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for item in items for row in _rows(item)]
        file = self._opened()
        file.write("".join(lines))
        file.flush()
        return 0

    def _opened(self) -> IO[str]:
        if self._path is None:
            return sys.stdout
        if self._file is None or not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.close()
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - held until close
        return self._file

    def flush(self) -> None:
        """Nothing waits here: each write is flushed."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _rows(item: Item) -> list[dict[str, object]]:
    return [item.to_dict()] if isinstance(item, Event) else item.rows()


def open_sinks(specs: Sequence[str], *, capacity: int, segment_s: float, rows_per_part: int) -> list[Outlet]:
    """An outlet for each ``--sink``.

    Raises:
        UsageError: none of :data:`SPECS`.
    """
    return [_open_sink(spec, capacity, segment_s, rows_per_part) for spec in specs]


def _open_sink(spec: str, capacity: int, segment_s: float, rows_per_part: int) -> Outlet:
    from pipeline.live.sink_parquet import ParquetSink
    from pipeline.live.sink_video import VideoSink
    from pipeline.live.sink_webhook import WebhookSink

    kind, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise UsageError(f"unknown sink {redact(spec)!r}", "--sink", f"choose one of: {', '.join(SPECS)}")
    name = redact(spec)
    if kind == "jsonl":
        return Outlet(name, JsonlSink(rest), capacity=capacity)
    if kind == "parquet":
        return Outlet(
            name, ParquetSink(Path(rest), segment_s=segment_s, rows_per_part=rows_per_part), capacity=capacity
        )
    if kind in ("http", "https"):
        return Outlet(name, WebhookSink(spec), capacity=capacity, secrets=secrets_of(spec))
    if kind == "mp4" or spec.startswith(("rtsp://", "rtsps://")):
        # Few, because each item holds a picture.
        return Outlet(
            name,
            VideoSink(rest if kind == "mp4" else spec),
            capacity=min(capacity, 30),
            batch=1,
            secrets=secrets_of(spec),
        )
    raise UsageError(f"unknown sink {name!r}", "--sink", f"choose one of: {', '.join(SPECS)}")
