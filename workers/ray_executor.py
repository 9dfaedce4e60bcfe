"""Doing units on a Ray cluster: one actor per GPU (or CPU share), each a whole unit worker.

Ray Core actors and bounded streaming generators, no Ray Data and no frames in the object store: an actor decodes beside
its GPU in a process of its own and writes its unit's rows itself; what travels is the unit, progress and a report, so
nothing can spill. The coordinator here counts attempts (Ray's own retries are off): a unit that failed three times, on
at least two workers, is set aside with what was seen, and the job goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.metrics import Counter, Gauge
from ray.util.placement_group import remove_placement_group

from configs.schema import Config
from pipeline.errors import DeviceError, MaskletError, ModelError
from pipeline.store import may_go_on
from pipeline.types import BoxPrompt, Prompts
from workers.phrases import encode_prompts
from workers.ray_session import RaySession, Share, cluster_nodes, is_placed, share_cluster
from workers.unit_worker import UnitWorker
from workers.units import (
    MAX_ATTEMPTS,
    Attempt,
    Unit,
    UnitProgress,
    UnitReport,
    check_token,
    committed,
    failed,
    set_aside,
    write_log,
    write_token,
)

LOGGER = logging.getLogger("masklet.ray")

MIN_WORKERS_TRIED = 2
_POLL_S = 1.0
_DRAIN_S = 15.0
"""How long an interrupted worker may take to commit what it has before it is killed."""
_PLACEMENT_S = 600.0
"""How long a job without any worker waits for the cluster to have room; autoscalers take minutes."""
_MAX_STILLBORN = 3
"""Starts that fail in a row, per worker, before it is given up: what cannot be imported will never be."""
_SILENCE_S = 900.0
"""A worker that says nothing for so long hangs. Models load in minutes; a frame takes seconds."""
_EMBEDDINGS_S = 30.0


class Doer(Protocol):
    """What an actor holds: a :class:`UnitWorker`, or a stand-in for tests."""

    def process(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """See :meth:`UnitWorker.process`."""
        ...

    def stop(self) -> None:
        """See :meth:`UnitWorker.stop`."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every actor needs to build its worker, apart from the embeddings."""

    config: Config
    boxes: list[BoxPrompt]
    exemplar_uri: str
    make: Callable[[Config, Prompts, list[BoxPrompt], str], Doer] = UnitWorker


class UnitActor:
    """A worker that can be asked to stop; Ray runs ``stop`` beside ``process`` (two threads).

    Args:
        spec: what to build it from, with the first unit: then an error on the way is the task's, not a dead actor.
        prompts: one reference to the job's embeddings; in a list, so that Ray does not wait for it.
    """

    def __init__(self, spec: WorkerSpec, prompts: list[Any]) -> None:
        self._spec, self._prompts = spec, prompts
        self._worker: Doer | None = None
        self._is_stopped = False

    def process(self, unit: Unit, units: str, token: str) -> Generator[UnitProgress | UnitReport]:
        """See :meth:`UnitWorker.process`. An interruption ends the stream after the commit.

        Raises:
            UsageError: the coordinator's ``units``, which has this ``token``, is not what stands there on this node.
        """
        spec = self._spec
        check_token(Path(units), token)
        if self._worker is None:
            prompts = shared_prompts(self._prompts[0], spec.config, has_boxes=bool(spec.boxes))
            self._worker = spec.make(spec.config, prompts, spec.boxes, spec.exemplar_uri)
        if not self._is_stopped:
            with contextlib.suppress(KeyboardInterrupt):
                yield from self._worker.process(unit, Path(units))

    def stop(self) -> None:
        """Commit what is done of the unit at hand and end it."""
        self._is_stopped = True
        if self._worker is not None:
            self._worker.stop()

    def whereabouts(self) -> str:
        """Process and node, for people."""
        node = ray.get_runtime_context().get_node_id()
        return f"process {os.getpid()} on {socket.gethostname()} (node {node[:12]})"

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()


def shared_prompts(reference: Any, config: Config, *, has_boxes: bool) -> Prompts:
    """The job's embeddings; encoded again if the object is gone with its owner."""
    try:
        prompts: Prompts = ray.get(reference, timeout=_EMBEDDINGS_S)
    except (RayError, GetTimeoutError) as error:
        LOGGER.warning("encoding the phrases again: %s", _first_line(error))
        return encode_prompts(config, has_boxes=has_boxes)
    return prompts


@dataclass(slots=True)
class _Task:
    """A unit with its history."""

    unit: Unit
    attempts: int = 0
    workers: set[int] = field(default_factory=set)
    failures: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class _Slot:
    """A place for one actor, and what it is doing."""

    number: int
    group: Any = None
    actor: Any = None
    hello: Any = None
    """The actor's first answer, until it has come."""
    whereabouts: str = ""
    """Process and node of the last actor that answered."""
    stream: Any = None
    task: _Task | None = None
    generation: int = 0
    silent_s: float = 0.0
    frames: int = 0
    """Of the unit at hand."""
    num_unbuilt: int = 0
    """Workers in a row, here, that could not load their models."""

    @property
    def is_hopeless(self) -> bool:
        """Whether there is something wrong with this place."""
        return self.num_unbuilt >= _MAX_STILLBORN

    def forget(self, *, is_dead: bool) -> _Task:
        """Take the task away; a dead actor too."""
        task = self.task
        assert task is not None
        self.task = self.stream = None
        if is_dead:
            self.end_actor()
        return task

    def end_actor(self) -> None:
        """Kill the actor; one that is dead, or cannot be reached just now, makes room for another."""
        if self.actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(self.actor)
        self.actor = self.hello = None


class RayExecutor:
    """Runs units on the actors of a connected cluster, each in a STRICT_PACK placement group of its own.

    Args:
        spec: what an actor builds its worker from.
        prompts: the embeddings, encoded once.
        workers: actors; 0 is one per GPU of the cluster, or one per two CPUs where there is none.
        gpus_per_worker: a share below 1 packs several actors on a GPU.
        session: closed with the executor.
        silence_s: a worker that says nothing for longer is killed and its unit done elsewhere.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        prompts: Prompts,
        *,
        workers: int = 0,
        gpus_per_worker: float | None = None,
        session: RaySession | None = None,
        silence_s: float = _SILENCE_S,
    ) -> None:
        nodes = cluster_nodes()
        has_gpus = any(n.get("GPU", 0) > 0 for n in nodes) and spec.config.device.name != "cpu"
        gpus = (gpus_per_worker if gpus_per_worker is not None else 1.0) if has_gpus else 0.0
        count, self._share = share_cluster(nodes, gpus, workers)
        self._spec = ray.put(_from_anywhere(_with_threads(spec, self._share)))
        self._prompts = [ray.put(prompts)]
        self._slots = [_Slot(i) for i in range(count)]
        self._in_use = self._slots
        """Those that the units at hand need."""
        self._session, self._silence_s = session, silence_s
        self._metrics = _Metrics()
        self._stillborn = 0
        """Actors in a row that could not start."""
        self._token = ""
        self._has_worked = False
        """Whether any worker ever got so far as to begin a unit."""
        self.num_retries = 0

    @property
    def num_workers(self) -> int:
        """Places for actors; some may still wait for a node."""
        return len(self._slots)

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do every unit; progress and one report each, as they come. Closing early lets the workers commit.

        Raises:
            DeviceError: the cluster has no room for a single worker, or none can start.
        """
        waiting = deque(_Task(u) for u in todo)
        slots = self._in_use = self._slots[: max(len(waiting), 1)]
        homeless_s = 0.0
        self._token = write_token(units)
        try:
            while waiting or any(s.task for s in slots):
                self._greet(slots)
                self._hand_out(slots, waiting, units)
                busy = [s for s in slots if s.task is not None]
                self._metrics.busy.set(len(busy))
                hellos = [s.hello for s in slots if s.hello is not None]
                if busy:
                    homeless_s = 0.0
                    yield from self._poll(busy, hellos, waiting, units)
                else:
                    homeless_s += self._wait_for_room(hellos, homeless_s)
        finally:
            self._drain(slots)

    def _greet(self, slots: list[_Slot]) -> None:
        """Note which actors have answered, and drop those that could not start."""
        for slot in slots:
            if slot.hello is None or not ray.wait([slot.hello], timeout=0)[0]:
                continue
            try:
                slot.whereabouts = ray.get(slot.hello)
                slot.hello, self._stillborn = None, 0
            except RayError as error:
                why = _first_line(error)
                LOGGER.warning("worker %d did not start: %s", slot.number, why)
                slot.end_actor()
                self._stillborn += 1
                if self._stillborn >= _MAX_STILLBORN * len(slots) and not any(s.task for s in slots):
                    raise DeviceError("no worker can start", why, "its log is in Ray's session folder") from error

    def _wait_for_room(self, hellos: list[Any], waited_s: float) -> float:
        if waited_s >= _PLACEMENT_S:
            share = f"{self._share.gpus:g} GPU and {self._share.cpus:g} CPU on one node"
            raise DeviceError("the cluster has no room for a worker", f"needs {share}", "free some, or add a node")
        started = time.monotonic()
        if hellos:
            ray.wait(hellos, timeout=_POLL_S)
        else:
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def _hand_out(self, slots: list[_Slot], waiting: deque[_Task], units: Path) -> None:
        for slot in slots:
            others_busy = any(s.task is not None for s in slots)
            is_free = slot.task is None and not slot.is_hopeless
            task = _next_for(slot, waiting, may_insist=not others_busy) if is_free else None
            if task is not None and self._is_up(slot):
                waiting.remove(task)
                task.attempts += 1
                task.workers.add(slot.number)
                slot.task, slot.silent_s, slot.frames = task, 0.0, 0
                slot.stream = slot.actor.process.options(
                    num_returns="streaming", _generator_backpressure_num_objects=64
                ).remote(replace(task.unit, uri=_absolute(task.unit.uri)), str(units.absolute()), self._token)

    def _is_up(self, slot: _Slot) -> bool:
        """Whether the slot has an actor that has answered.

        Only such a one gets a unit: it must not wait for a node while other workers are idle, nor be blamed for an
        actor that could not start.
        """
        if slot.actor is None:
            self._start(slot)
        return slot.actor is not None and slot.hello is None

    def _start(self, slot: _Slot) -> None:
        """Start an actor if its place is there."""
        if slot.group is None:
            slot.group = self._share.reserve(f"masklet-{os.getpid()}-place-{slot.number}")
            with contextlib.suppress(RayError):
                slot.group.wait(_POLL_S)
        if not is_placed(slot.group):
            return
        slot.generation += 1
        slot.actor = (
            ray.remote(UnitActor)
            .options(
                name=f"masklet-{os.getpid()}-worker-{slot.number}-{slot.generation}",
                max_restarts=0,  # the coordinator starts a new one, so that it knows
                max_concurrency=2,
                **self._share.options(slot.group),
            )
            .remote(self._spec, self._prompts)
        )
        slot.hello = slot.actor.whereabouts.remote()

    def _poll(
        self, busy: list[_Slot], hellos: list[Any], waiting: deque[_Task], units: Path
    ) -> Generator[UnitProgress | UnitReport]:
        streams = {s.stream: s for s in busy}
        started = time.monotonic()
        ray.wait([*streams, *hellos], num_returns=1, timeout=_POLL_S, fetch_local=False)
        waited_s = time.monotonic() - started
        # All that is ready: one that talks a lot must not drown out the others.
        ready, _ = ray.wait(list(streams), num_returns=len(streams), timeout=0, fetch_local=False)
        heard = {streams[stream].number for stream in ready}
        for slot in busy:
            slot.silent_s = 0.0 if slot.number in heard else slot.silent_s + waited_s
            event = None
            if slot.number in heard:
                event = self._next(slot, waiting, units)
            elif slot.silent_s > self._silence_s:
                event = self._give_up_on(slot, waiting, units)
            if event is not None:
                self._metrics.count(event, slot)
                yield event

    def _give_up_on(self, slot: _Slot, waiting: deque[_Task], units: Path) -> UnitReport | None:
        """End a worker that hangs."""
        return self._retry(slot, f"silent for {slot.silent_s:.0f} s", waiting, units, is_dead=True)

    def _next(self, slot: _Slot, waiting: deque[_Task], units: Path) -> UnitProgress | UnitReport | None:
        """The next thing a worker says; its end of stream or death settles the task."""
        try:
            event: UnitProgress | UnitReport = ray.get(next(slot.stream))
        except StopIteration:
            return self._retry(slot, "ended without a report", waiting, units)
        except RayError as error:
            # A task's own error leaves the worker as it is, unless it never came about.
            is_dead = self._is_unfit(slot, error) if isinstance(error, RayTaskError) else True
            return self._retry(slot, error, waiting, units, is_dead=is_dead)
        self._has_worked, slot.num_unbuilt = True, 0
        if not isinstance(event, UnitReport):
            return event
        if event.retry:
            return self._retry(slot, event, waiting, units, is_dead=event.retry == "afresh")
        slot.forget(is_dead=False)
        return event

    def _is_unfit(self, slot: _Slot, error: RayTaskError) -> bool:
        """Whether a worker could not load its models, which costs an attempt and the worker.

        Raises:
            MaskletError: no worker can, or the error is nobody's but the user's.
        """
        if not isinstance(error.cause, MaskletError):
            return False
        slot.num_unbuilt += 1
        tried = [s for s in self._in_use if s.actor is not None or s.is_hopeless]
        nobody_can = all(s.num_unbuilt for s in tried) and not self._has_worked
        is_blameless = isinstance(error.cause, DeviceError | ModelError)
        if not is_blameless or nobody_can or all(s.is_hopeless for s in self._in_use):
            raise error.cause from error
        return True

    def _retry(
        self,
        slot: _Slot,
        failure: str | RayError | UnitReport,
        waiting: deque[_Task],
        units: Path,
        *,
        is_dead: bool = False,
    ) -> UnitReport | None:
        """Queue a worker's unit again, or set it aside; a commit whose acknowledgement got lost counts.

        ``is_dead``: the worker is not to be used again.
        """
        task = slot.forget(is_dead=is_dead)
        report = committed(units, task.unit.key)
        if report is not None and not may_go_on(report.error):
            return report
        shutil.rmtree(units / task.unit.key, ignore_errors=True)
        why = _why(failure)
        LOGGER.warning("%s: attempt %d failed: %s", task.unit.video_id, task.attempts, why)
        details = str(failure) if isinstance(failure, RayError) else ""
        task.failures.append(Attempt(f"worker {slot.number}, {slot.whereabouts}", why, details))
        num_places = sum(not s.is_hopeless for s in self._in_use)
        enough_workers = len(task.workers) >= min(MIN_WORKERS_TRIED, num_places)
        # A second worker may never come; then twice the attempts have to do.
        if task.attempts >= (MAX_ATTEMPTS if enough_workers else 2 * MAX_ATTEMPTS):
            return _given_up(task, failure, units)
        self.num_retries += 1
        self._metrics.retries.inc()
        waiting.append(task)
        return None

    def _drain(self, slots: list[_Slot]) -> None:
        """Let busy workers commit, within a deadline; then end all actors."""
        busy = [s for s in slots if s.task is not None and s.actor is not None]
        for slot in busy:
            slot.actor.stop.remote()
        deadline = time.monotonic() + _DRAIN_S
        for slot in busy:
            self._drain_one(slot, deadline)
        for slot in slots:
            slot.end_actor()
            slot.task = slot.stream = None

    @staticmethod
    def _drain_one(slot: _Slot, deadline: float) -> None:
        with contextlib.suppress(RayError, StopIteration):
            while time.monotonic() < deadline:
                ready, _ = ray.wait([slot.stream], timeout=max(deadline - time.monotonic(), 0), fetch_local=False)
                if not ready or isinstance(ray.get(next(slot.stream)), UnitReport):
                    return

    def worker_pids(self) -> dict[str, int]:
        """Process id of each busy worker, by the key of its unit."""
        busy = [s for s in self._slots if s.task is not None and s.actor is not None]
        return {s.task.unit.key: ray.get(s.actor.pid.remote()) for s in busy if s.task is not None}

    def close(self) -> None:
        """End all actors, give back their places, and leave the cluster if it was joined for this job."""
        if not ray.is_initialized():
            return
        self._drain(self._slots)
        for slot in self._slots:
            if slot.group is not None:
                with contextlib.suppress(RayError):
                    remove_placement_group(slot.group)
                slot.group = None
        if self._session is not None:
            self._session.close()


class _Metrics:
    """What Ray exports for Prometheus beside its own."""

    def __init__(self) -> None:
        self._frames = Counter("masklet_frames", "Frames tracked", tag_keys=("worker",))
        self._units = Counter("masklet_units", "Units ended", tag_keys=("status",))
        self.retries = Counter("masklet_retries", "Units done again after a failure")
        self.busy = Gauge("masklet_busy_workers", "Workers with a unit at hand")

    def count(self, event: UnitProgress | UnitReport, slot: _Slot) -> None:
        """Take in what a worker said."""
        done = event.num_done if isinstance(event, UnitProgress) else event.num_tracked
        if done > slot.frames:
            self._frames.inc(done - slot.frames, {"worker": str(slot.number)})
            slot.frames = done
        if isinstance(event, UnitReport):
            self._units.inc(1, {"status": event.status})


def _with_threads(spec: WorkerSpec, share: Share) -> WorkerSpec:
    """A worker on CPUs uses its share of the node, not the whole node as a job alone does."""
    device = spec.config.device
    if device.threads or share.gpus:
        return spec
    threads = max(int(share.cpus) - 1, 1)
    return replace(
        spec, config=spec.config.model_copy(update={"device": device.model_copy(update={"threads": threads})})
    )


def _absolute(path: str) -> str:
    """A local path as an absolute one; anything else (an address, a model's name) as it is."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def _from_anywhere(spec: WorkerSpec) -> WorkerSpec:
    """A worker's current folder is not the driver's."""
    config, model = spec.config, spec.config.model
    paths = {"name": _absolute(model.name), "tracker_from": model.tracker_from and _absolute(model.tracker_from)}
    detections = {"detections": config.detector.detections and _absolute(config.detector.detections)}
    update = {
        "model": model.model_copy(update=paths),
        "detector": config.detector.model_copy(update=detections),
    }
    return replace(spec, config=config.model_copy(update=update), exemplar_uri=_absolute(spec.exemplar_uri))


def _next_for(slot: _Slot, waiting: deque[_Task], *, may_insist: bool) -> _Task | None:
    """The next unit, if possible one that this worker has not failed on.

    One that would be set aside but for having been on one worker only waits for another, unless there is none.
    """
    fresh = (t for t in waiting if slot.number not in t.workers)
    again = (t for t in waiting if may_insist or t.attempts < MAX_ATTEMPTS)
    return next(fresh, None) or next(again, None)


def _why(failure: str | RayError | UnitReport) -> str:
    if isinstance(failure, UnitReport):
        return failure.error or ""
    return failure if isinstance(failure, str) else _first_line(failure)


def _given_up(task: _Task, failure: str | RayError | UnitReport, units: Path) -> UnitReport:
    """The report of a unit that is set aside; where attempts ended with a report of their own, the last one stands."""
    why, tried = _why(failure), f"{task.attempts} attempts on {len(task.workers)} worker(s)"
    log = write_log(units.parent, task.unit, task.failures)
    if isinstance(failure, UnitReport):
        see = f"; see {log}" if log else ""
        return failed(task.unit, f"{why} ({tried}{see})", failure.retry)
    return set_aside(task.unit, tried, why, log)


def _first_line(error: Exception) -> str:
    if isinstance(error, RayTaskError) and isinstance(error.cause, MaskletError):
        return str(error.cause)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:300]
