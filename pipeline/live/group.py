"""A group of cameras that is followed in another process: its service, and the relay through which rows leave it.

The other side pulls (:meth:`CameraGroup.take`) and says up to where what it took is safe; only then does a saved state
count. So a group that dies loses nothing that its last state does not bring back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.schema import Config
from pipeline.live.build import Models, input_size, load, make_worker
from pipeline.live.checkpoint import Past
from pipeline.live.events import LiveResult
from pipeline.live.service import StreamService
from pipeline.live.sinks import Item
from pipeline.live.stats import Histogram
from pipeline.sources.live_open import CameraSpec
from pipeline.store import Manifest, VideoEntry

LONG_POLL_S = 0.1
_CAPACITY, _CAPACITY_BYTES = 4096, 128 << 20
"""Items that may wait for the other side, and their size; then the oldest go, and are counted."""
_BATCH_BYTES = 32 << 20
"""About as much goes in one report."""


@dataclass(frozen=True, slots=True)
class GroupCamera:
    """A camera and, where they were changed since the command line, its phrases."""

    spec: CameraSpec
    phrases: tuple[str, ...] | None = None
    past: Past | None = None
    """What the sinks of the other side have of it."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Everything a process needs to follow some cameras."""

    config: Config
    cameras: tuple[GroupCamera, ...]
    state: Path
    """Keeps state across restarts; every machine the group may run on has to see it."""
    exemplar: CameraSpec | None = None
    wants_pictures: bool = False
    load: Callable[[Config], Models] = load


@dataclass(frozen=True, slots=True)
class Report:
    """What a group has to say."""

    number: int
    """Items up to this number have been taken."""
    items: tuple[Item, ...]
    saves: bool
    """Whether a state waits for what was taken to be safe."""
    statuses: list[dict[str, Any]]
    entries: list[VideoEntry]
    latencies: dict[str, tuple[Histogram, Histogram]]
    stages: dict[str, Histogram]
    num_lost: int
    num_save_failures: int
    is_over: bool
    is_closed: bool


def size_of(item: Item) -> int:
    """Bytes that an item holds, about."""
    if not isinstance(item, LiveResult):
        return 500
    picture = item.picture.nbytes if item.picture is not None else 0
    return picture + 500 + sum(100 + len(rle.counts) for rle in item.result.rles)


class Relay:
    """Stands in for a sink: keeps items until they are pulled."""

    name, wants_pictures, is_gone, error = "relay", False, False, ""

    def __init__(self, *, wants_pictures: bool = False) -> None:
        self.wants_pictures = wants_pictures
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._flushes: list[tuple[int, threading.Event]] = []
        self._num_put = self._num_taken = self._num_bytes = self.num_lost = 0

    @property
    def num_written(self) -> int:
        """Items that were taken."""
        return self._num_taken - self.num_lost

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Keep an item; never blocks."""
        with self._changed:
            self._items.append(item)
            self._num_bytes += size_of(item)
            self._num_put += 1
            while len(self._items) > _CAPACITY or (self._num_bytes > _CAPACITY_BYTES and len(self._items) > 1):
                self._pop()
                self.num_lost += 1
            self._changed.notify_all()

    def flush(self) -> threading.Event:
        """Set once everything put so far is safe on the other side."""
        done = threading.Event()
        with self._changed:
            self._flushes.append((self._num_put, done))
            self._changed.notify_all()
        return done

    def past(self, stream_id: str) -> Past:
        """The other side knows its sinks."""
        return Past()

    def close(self, timeout_s: float) -> None:
        """Wait until everything is safe."""
        self.flush().wait(timeout_s)

    def take(self, safe: int, timeout_s: float) -> tuple[int, tuple[Item, ...], bool]:
        """Items so far with the number of the last, and whether somebody waits for them to be safe."""
        with self._changed:
            waiting, self._flushes = self._flushes, []
            for number, done in waiting:
                if number <= safe:
                    done.set()
                else:
                    self._flushes.append((number, done))
            if not self._items and not self._flushes:
                self._changed.wait(timeout_s)
            items, room = list[Item](), _BATCH_BYTES
            while self._items and room > 0:
                items.append(self._pop())
                room -= size_of(items[-1])
            return self._num_taken, tuple(items), bool(self._flushes)

    def _pop(self) -> Item:
        item = self._items.popleft()
        self._num_bytes -= size_of(item)
        self._num_taken += 1
        return item

    def status(self) -> dict[str, object]:
        """The other side shows its own sinks."""
        return {}


@dataclass
class Notebook:
    """A share of a run folder: state in ``folder/state``; what would be in the manifest goes to the other side."""

    folder: Path
    manifest: Manifest = field(default_factory=lambda: Manifest("", {}, [], [], ""))

    def save(self) -> None:
        """The other side does."""

    def finished(self, video_id: str) -> bool:
        """The other side has sorted those out."""
        return False


class CameraGroup:
    """Follows the cameras of ``spec`` in a thread of its own.

    Raises:
        MaskletError: models cannot be loaded, or a box is bad.
    """

    def __init__(self, spec: GroupSpec) -> None:
        models = spec.load(spec.config)
        self._relay, self._notebook = Relay(wants_pictures=spec.wants_pictures), Notebook(spec.state.parent)
        self._service = StreamService(
            spec.config,
            make_worker(spec.config, models, spec.exemplar, spec.state),
            models.encode,
            [self._relay],
            input_size=input_size(models),
            run=self._notebook,
        )
        for camera in spec.cameras:
            self.add_camera(camera)
        self._stop, self._is_interrupted = threading.Event(), True
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._service.run(self._stop, until_ended=False)
            self._service.close(interrupted=self._is_interrupted)
        except BaseException as error:
            self._error = error

    def take(self, safe: int) -> Report:
        """What there is to say since the last call; waits a little for it. ``safe``: items up to this number are safe.

        Raises:
            BaseException: what ended the service.
        """
        is_closed = not self._thread.is_alive()
        number, items, saves = self._relay.take(safe, LONG_POLL_S)
        if self._error is not None:
            raise self._error
        entries = list(self._notebook.manifest.videos)
        service = self._service
        return Report(
            number,
            items,
            saves,
            service.statuses(),
            entries,
            service.latencies(),
            service.stages(),
            self._relay.num_lost,
            service.num_save_failures,
            service.is_over,
            is_closed and not items,
        )

    def add_camera(self, camera: GroupCamera) -> None:
        """Follow one more camera."""
        wanted = list(camera.phrases or self._service.config.prompts)
        thread = getattr(self, "_thread", None)
        if thread is None:
            self._service.add_camera(camera.spec, wanted, camera.past)
            if camera.phrases is not None:
                self._service.set_prompts(camera.spec.stream_id, self._service.encode(wanted))
        else:
            self._service.encode(wanted)
            self._service.call(lambda: self._service.add_camera(camera.spec, wanted, camera.past))

    def request_phrases(self, stream_id: str, phrases: Sequence[str]) -> None:
        """See :class:`pipeline.live.service.LiveService`."""
        self._service.request_phrases(stream_id, phrases)

    def request_pause(self, stream_id: str, is_paused: bool) -> None:
        """See :class:`pipeline.live.service.LiveService`."""
        self._service.request_pause(stream_id, is_paused)

    def request_removal(self, stream_id: str) -> None:
        """See :class:`pipeline.live.service.LiveService`."""
        self._service.request_removal(stream_id)

    def finish(self, interrupted: bool) -> None:
        """Hand out what is held back, save, and end; :meth:`take` brings the rest."""
        self._is_interrupted = interrupted
        self._stop.set()


def without_camera(spec: GroupSpec, stream_id: str) -> GroupSpec:
    """The group after a camera was taken off."""
    return replace(spec, cameras=tuple(c for c in spec.cameras if c.spec.stream_id != stream_id))
