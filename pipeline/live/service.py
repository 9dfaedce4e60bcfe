"""The tracking loop of ``masklet stream``: cameras in, rows and events out, state saved, commands obeyed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from configs.schema import Config
from pipeline.errors import MaskletError, SourceError, UsageError
from pipeline.live.board import Board
from pipeline.live.checkpoint import Past, drop_state, joined, saved_phrases
from pipeline.live.roster import Roster
from pipeline.live.sinks import Handover, Item
from pipeline.live.stats import Histogram
from pipeline.sources.live import LiveSource, State
from pipeline.sources.live_open import CameraSpec, parse_cameras
from pipeline.store import Manifest, VideoEntry
from pipeline.types import Prompts
from workers.camera_worker import Camera, CameraOutput, CameraWorker

LOGGER = logging.getLogger("masklet.live")
T = TypeVar("T")
_IDLE_S = 0.05
_STATUS_EVERY_S = 0.1
_CLOSE_TIMEOUT_S = 15.0


def has_no_listener(board: Board | None, outlets: Sequence[Handover]) -> bool:
    """Whether whoever read our stdout has left (``| head``) and nobody else is there: no sink, no page."""
    return board is None and bool(outlets) and all(o.is_gone for o in outlets)


def known_past(spec: CameraSpec, outlets: Sequence[Handover]) -> Past:
    """What the sinks have of a camera from an earlier run; a file has numbers of its own."""
    return joined(outlet.past(spec.stream_id) for outlet in outlets if not spec.is_file)


class StateFolder(Protocol):
    """Where a service keeps its state and says how its streams are: a run folder, or a share of one."""

    folder: Path
    manifest: Manifest

    def save(self) -> None:
        """Write the manifest."""
        ...

    def finished(self, video_id: str) -> bool:
        """Whether nothing is left to do for it."""
        ...


class LiveService(Protocol):
    """What the page and the metrics talk to, from their own threads: cameras of this process, or of others."""

    config: Config

    @property
    def outlets(self) -> Sequence[Handover]:
        """Where rows go."""
        ...

    last_turn_s: float

    @property
    def num_save_failures(self) -> int:
        """Times that a state or the manifest could not be saved."""
        ...

    def stream_ids(self) -> list[str]:
        """The cameras there are."""
        ...

    def request_camera(self, uri: str, phrases: Sequence[str]) -> CameraSpec:
        """Follow one more; it is there again after a restart with ``--resume``."""
        ...

    def request_phrases(self, stream_id: str, phrases: Sequence[str]) -> None:
        """Look for other phrases."""
        ...

    def request_pause(self, stream_id: str, is_paused: bool) -> None:
        """Stop tracking for a while, or go on."""
        ...

    def request_removal(self, stream_id: str) -> None:
        """Let a camera go."""
        ...

    def statuses(self) -> list[dict[str, Any]]:
        """Every camera as ``GET /streams`` shows it."""
        ...

    def latencies(self) -> dict[str, tuple[Histogram, Histogram]]:
        """Per camera: from arrival to row, and from arrival to the end of tracking."""
        ...

    def stages(self) -> dict[str, Histogram]:
        """Time per call of each stage."""
        ...


class StreamService:
    """Runs the cameras of one process. Everything but :meth:`call` happens in the thread that calls :meth:`run`.

    Args:
        config: the effective configuration.
        worker: does the tracking.
        encode: phrases to prompts; called from other threads too.
        outlets: where rows and events go.
        board: what the page sees; pictures are kept if it is given.
        input_size: ``(h, w)`` of the detector's input.
        run: the run folder, if there is one; state is saved below it.
    """

    def __init__(
        self,
        config: Config,
        worker: CameraWorker,
        encode: Callable[[Sequence[str]], Prompts],
        outlets: Sequence[Handover],
        *,
        board: Board | None = None,
        input_size: tuple[int, int] | None = None,
        run: StateFolder | None = None,
    ) -> None:
        self.config, self.worker, self.encode = config, worker, encode
        self._outlets, self.board, self._input_size, self.run_folder = list(outlets), board, input_size, run
        self.sources: dict[str, LiveSource] = {}
        self._pasts: dict[str, Past] = {}
        """Of cameras that were taken off, or are known elsewhere."""
        self._wake = threading.Event()
        self._commands: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._wants_pictures = board is not None or any(o.wants_pictures for o in outlets)
        self._saved_s = self._shown_s = time.monotonic()
        self._drained: list[Item] = []
        self._num_save_failures = 0
        self._cannot_save = False
        self._flushing: tuple[threading.Event, list[Callable[[], None]]] | None = None
        self.roster = Roster(run.folder / "state" if run is not None else None)
        self.last_turn_s = time.monotonic()
        """When the loop last went round."""

    @property
    def outlets(self) -> Sequence[Handover]:
        """Where rows and events go."""
        return self._outlets

    # -- cameras --------------------------------------------------------------------------------------------------

    def add_camera(self, spec: CameraSpec, phrases: Sequence[str], past: Past | None = None) -> None:
        """Follow one more camera; continues its saved state, with the phrases it had then.

        ``past``: what others know of an earlier camera of this id.

        Raises:
            UsageError: too many cameras, or the id is taken.
        """
        if spec.stream_id in self.sources:
            raise UsageError("a camera of this name runs already", spec.stream_id, "choose another id")
        if len(self.sources) >= self.config.live.max_cameras:
            raise UsageError(f"{len(self.sources)} cameras run already", spec.shown, "raise live.max_cameras")
        folder = self._state_folder(spec.stream_id)
        phrases = (saved_phrases(folder) if folder else []) or list(phrases)
        prompts = self.encode(phrases)
        if past is not None:
            self._pasts[spec.stream_id] = past
        self.add_encoded(spec, prompts)

    def add_encoded(self, spec: CameraSpec, prompts: Prompts) -> None:
        """Follow one more camera, with phrases that are encoded already."""
        source = LiveSource(spec, self.config.live, self._wake, input_size=self._input_size)
        source.wants_pictures = self._wants_pictures
        self.sources[spec.stream_id] = source
        folder, past = self._state_folder(spec.stream_id), self._past_of(spec)
        self._deliver([self.worker.add(spec.stream_id, source, prompts, folder, past)])

    def _past_of(self, spec: CameraSpec) -> list[Past]:
        """What sinks and earlier cameras of this id have given out. A file has numbers of its own."""
        if spec.is_file:
            return []
        taken_off = [self._pasts[spec.stream_id]] if spec.stream_id in self._pasts else []
        return [*taken_off, known_past(spec, self.outlets)]

    def _state_folder(self, stream_id: str) -> Path | None:
        return self.run_folder.folder / "state" / stream_id if self.run_folder is not None else None

    def remove_camera(self, stream_id: str) -> None:
        """Let a camera go; its rows so far stay."""
        camera = self.worker.cameras[stream_id]
        self._deliver([self.worker.remove(stream_id, "the camera was taken off")])
        self._pasts[stream_id] = camera.marks.past
        source = self.sources.pop(stream_id)
        self._drop_state(source.spec)
        if self.run_folder is not None:
            self.run_folder.manifest.put(self._entry(camera, source))
        if self.board is not None:
            self.board.remove(stream_id)

    def _drop_state(self, spec: CameraSpec) -> None:
        """Nothing goes on from a stream that has ended; only a camera of its name numbers after it."""
        folder = self._state_folder(spec.stream_id)
        if folder is not None:
            self._save(lambda: drop_state(folder, keep_marks=not spec.is_file))

    def set_prompts(self, stream_id: str, prompts: Prompts) -> None:
        """Look for other phrases on this camera."""
        self._deliver([self.worker.set_prompts(stream_id, prompts)])

    def pause(self, stream_id: str, is_paused: bool) -> None:
        """Stop tracking a camera for a while, or go on."""
        self._deliver([self.worker.pause(stream_id, is_paused)])

    def call(self, command: Callable[[], T], timeout_s: float = 30.0) -> T:
        """Have the loop execute this between two steps, from any thread; gives its answer or raises its error."""
        future: Future[T] = Future()
        self._commands.put((command, future))
        self._wake.set()
        return future.result(timeout_s)

    # -- for the page, from any thread ----------------------------------------------------------------------------

    def stream_ids(self) -> list[str]:
        """See :class:`LiveService`, also for what follows."""
        return list(self.sources)

    def request_camera(self, uri: str, phrases: Sequence[str]) -> CameraSpec:
        """Follow one more camera; it is there again after a restart with ``--resume``."""
        self.encode(phrases)  # here, so that the loop finds it ready

        def add() -> CameraSpec:
            [spec] = parse_cameras([uri], taken=list(self.sources))
            self.add_camera(spec, phrases)
            return spec

        spec = self.call(add)
        self.roster.add(spec, phrases)
        return spec

    def request_phrases(self, stream_id: str, phrases: Sequence[str]) -> None:
        """Look for other phrases."""
        prompts = self.encode(phrases)
        self.call(lambda: self.set_prompts(stream_id, prompts))

    def request_pause(self, stream_id: str, is_paused: bool) -> None:
        """Stop tracking for a while, or go on."""
        self.call(lambda: self.pause(stream_id, is_paused))

    def request_removal(self, stream_id: str) -> None:
        """Let a camera go."""
        self.call(lambda: self.remove_camera(stream_id))
        self.roster.remove(stream_id)

    def statuses(self) -> list[dict[str, Any]]:
        """Every camera as ``GET /streams`` shows it."""
        cameras = dict(self.worker.cameras)
        return [status_of(cameras[i], source) for i, source in list(self.sources.items()) if i in cameras]

    def latencies(self) -> dict[str, tuple[Histogram, Histogram]]:
        """From arrival to row, and to the end of tracking."""
        return {i: (c.stats.latency, c.stats.step) for i, c in list(self.worker.cameras.items())}

    def stages(self) -> dict[str, Histogram]:
        """Time per call of each stage."""
        return dict(self.worker.stages.stages)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, until_ended: bool = True) -> None:
        """Track until ``stop`` is set or, with ``until_ended``, every camera has ended or failed."""
        while not stop.is_set():
            self.turn()
            if (until_ended and self.is_over) or self.is_unheard:
                return

    def turn(self) -> None:
        """Go round once: commands, one step of the worker, what is due; waits a little if no frame was ready."""
        self.last_turn_s = time.monotonic()
        self._wake.clear()
        self._obey()
        outputs, num_tracked = self.worker.step()
        self._deliver(outputs)
        self._look_after()
        if num_tracked == 0 and not self.is_over:
            self._wake.wait(_IDLE_S)

    def drain(self) -> list[Item]:
        """What was handed out since the last call, for a caller that turns the service itself and has no outlets."""
        items, self._drained = self._drained, []
        return items

    def _obey(self) -> None:
        while True:
            try:
                command, future = self._commands.get_nowait()
            except Empty:
                return
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)

    def _deliver(self, outputs: Sequence[CameraOutput]) -> None:
        for output in outputs:
            items: list[Item] = [*output.results, *output.events]
            if not self.outlets:
                self._drained = [*self._drained, *items][-self.config.live.sink_queue :]
            for outlet in self.outlets:
                for item in items:
                    outlet.put(item)
            if self.board is not None:
                self.board.show(output.stream_id, output.results, output.events)

    @property
    def is_over(self) -> bool:
        """Whether every camera has ended or failed, and nothing waits."""
        sources = self.sources.values()
        return all(s.state in (State.ENDED, State.FAILED) and not len(s.slot) for s in sources)

    @property
    def num_save_failures(self) -> int:
        """Times that a state or the manifest could not be saved; see :class:`LiveService`."""
        return self._num_save_failures + sum(c.marks.num_failures for c in list(self.worker.cameras.values()))

    @property
    def is_unheard(self) -> bool:
        """See :func:`has_no_listener`."""
        return has_no_listener(self.board, self.outlets)

    def _look_after(self) -> None:
        """What is due from time to time."""
        now_s = time.monotonic()
        if self.board is not None and now_s - self._shown_s >= _STATUS_EVERY_S:
            self._shown_s = now_s
            self._show_status()
        if self._flushing is not None and self._flushing[0].is_set():
            self._commit_state(self._flushing[1])
        if now_s - self._saved_s >= self.config.live.checkpoint_every_s:
            self._saved_s = now_s
            self._make_safe()

    # -- saving ---------------------------------------------------------------------------------------------------

    def _make_safe(self) -> None:
        """Have all sinks write what they hold; states count once the rows before them are safe in the first."""
        commits = self._prepare() if self.run_folder is not None and self._flushing is None else None
        flushed = [outlet.flush() for outlet in self.outlets]
        if commits is not None and flushed:
            self._flushing = (flushed[0], commits)

    def _prepare(self) -> list[Callable[[], None]]:
        """Write all states beside those that count."""
        return [commit for stream_id in self.worker.cameras for commit in self._saved(stream_id)]

    def _saved(self, stream_id: str) -> list[Callable[[], None]]:
        """Write one state beside the one that counts; what makes it count, or nothing where there is no room."""
        commits: list[Callable[[], None]] = []
        self._save(lambda: commits.append(self.worker.save(stream_id)))
        return commits

    def _commit_state(self, commits: Sequence[Callable[[], None]]) -> None:
        self._flushing = None
        before = self.num_save_failures
        for commit in commits:
            self._save(commit)
        self._save(self.save_manifest)
        if self._cannot_save and self.num_save_failures == before:
            self._cannot_save = False
            LOGGER.warning("the state is saved again")

    def _save(self, call: Callable[[], Any]) -> None:
        """Save something; a disk that is full ends no stream. Said once, until it works again."""
        try:
            call()
        except Exception:
            self._num_save_failures += 1
            if not self._cannot_save:
                LOGGER.exception("the state cannot be saved; rows go on, a restart would lose the ids")
            self._cannot_save = True

    def save_manifest(self, status: str = "running") -> None:
        """Bring the run's manifest up to date."""
        if self.run_folder is None:
            return
        for stream_id, camera in self.worker.cameras.items():
            self.run_folder.manifest.put(self._entry(camera, self.sources[stream_id]))
        self.run_folder.manifest.status = status
        self.run_folder.save()

    def _entry(self, camera: Camera, source: LiveSource) -> VideoEntry:
        height, width = source.source_size or (0, 0)
        is_done = source.state is State.ENDED
        entry = VideoEntry(
            camera.stream_id,
            source.spec.shown,
            "done" if is_done else "partial" if camera.stats.tracked else "failed",
            width,
            height,
            num_frames=source.next_index,
            num_tracked=camera.stats.tracked,
            num_masklets=camera.linker.num_masklets if camera.linker else 0,
            decoder="pyav",
            error=None if is_done else source.error or None,
        )
        entry.counters = {k: v for k, v in counters_of(camera, source).items() if v}
        return entry

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self, *, interrupted: bool) -> None:
        """Hand out what is held back, save, and finish the sinks."""
        commits: list[Callable[[], None]] = []
        for stream_id, source in self.sources.items():
            if interrupted and source.state not in (State.ENDED, State.FAILED):
                commits += self._saved(stream_id)
                self._deliver([self.worker.suspend(stream_id)])
                source.state, source.error = State.WAITING, "interrupted"
            else:
                self._deliver([self.worker.suspend(stream_id)])
                self._drop_state(source.spec)
        safe = [outlet.flush() for outlet in self.outlets]
        for outlet in self.outlets:
            outlet.close(_CLOSE_TIMEOUT_S)
        # Without its rows, an older state is the right one.
        self._commit_state(commits if all(done.is_set() for done in safe[:1]) else ())
        for source in self.sources.values():
            source.join(1.0)
        self._save(lambda: self.save_manifest("interrupted" if interrupted else "complete"))

    def failure(self) -> MaskletError | None:
        """The error to end with, if no camera ever gave a frame."""
        sources = list(self.sources.values())
        if any(s.counters.arrived for s in sources) or not sources:
            return None
        return SourceError("nothing could be read", sources[0].spec.shown, sources[0].error)

    @property
    def any_failed(self) -> bool:
        """Whether a camera was given up."""
        return any(s.state is State.FAILED for s in self.sources.values())

    # -- what is going on -----------------------------------------------------------------------------------------

    def _show_status(self) -> None:
        assert self.board is not None  # the caller checked
        self.board.status = self.statuses()
        self.board.sinks = [o.status() for o in self.outlets]
        self.board.is_ready = True


def counters_of(camera: Camera, source: LiveSource) -> dict[str, int]:
    """What was dropped, damaged, taken back or started afresh."""
    tracker: dict[str, int] = getattr(camera.tracker, "counters", {})
    counts = camera.linker.counts if camera.linker else {}
    return {
        "dropped": source.slot.num_dropped,
        "corrupt": source.counters.corrupt,
        "paused": source.counters.paused,
        "reconnects": source.counters.reconnects,
        "retracted": counts.get("retracted", 0),
        "tracking_failures": camera.stats.failures,
        **tracker,
    }


def status_of(camera: Camera, source: LiveSource) -> dict[str, Any]:
    """A camera as ``GET /streams`` shows it."""
    linker, latest = camera.linker, camera.linker.last if camera.linker else (-1, 0.0, 0.0)
    return {
        "id": camera.stream_id,
        "url": source.spec.shown,
        "state": "paused" if source.is_paused else source.state.value,
        "error": source.error,
        "phrases": list(camera.phrases.wanted),
        "size": list(reversed(source.source_size)) if source.source_size else None,
        "frame": latest[0],
        "pts_s": latest[1],
        "wall_s": latest[2],
        "fps": round(camera.stats.recent_tracked.rate(), 2),
        "latency_s": round(camera.stats.recent_latency.mean(), 3),
        "arrived": source.counters.arrived,
        "tracked": camera.stats.tracked,
        "waiting": len(source.slot),
        **counters_of(camera, source),
        "session": linker.session if linker else 0,
        "objects": linker.num_visible if linker else 0,
        "masklets": linker.num_masklets if linker else 0,
        "events": dict(linker.counts) if linker else {},
    }
