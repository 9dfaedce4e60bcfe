"""Doing units on a Ray cluster: one actor per GPU (or CPU share), each a whole unit worker. The only `import ray`.

Ray Core actors and bounded streaming generators, no Ray Data and no frames in the object store: an actor decodes beside
its GPU in a process of its own and writes its unit's rows itself; what travels is the unit, progress and a report, so
nothing can spill. The coordinator here counts attempts (Ray's own retries are off): a unit that failed three times, on
at least two workers, is set aside with what was seen, and the job goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from configs.schema import Config
from pipeline.errors import MaskletError, UsageError
from pipeline.types import BoxPrompt, Prompts
from workers.unit_worker import UnitWorker
from workers.units import Unit, UnitProgress, UnitReport, committed

LOGGER = logging.getLogger("masklet.ray")

MAX_ATTEMPTS = 3
MIN_WORKERS_TRIED = 2
_POLL_S = 1.0
_DRAIN_S = 15.0
"""How long an interrupted worker may take to commit what it has before it is killed."""
_STORE_BYTES = 256 << 20
"""Object store of a cluster that we start: reports and embeddings only."""


def connect(address: str, *, num_cpus: int | None = None) -> None:
    """Join the cluster at ``address``; ``local`` starts one on loopback, ``auto`` too unless ``RAY_ADDRESS`` is set.

    Raises:
        UsageError: nothing answers at that address.
    """
    if ray.is_initialized():
        return
    target = {"auto": os.environ.get("RAY_ADDRESS"), "local": "local"}.get(address, address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if target in (None, "local"):
        # Ray binds the outward address by default; a cluster for this job alone has no business there.
        options |= {
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "num_cpus": num_cpus,
        }
    try:
        ray.init(address=target, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError("no Ray cluster answers", str(target), " ".join(str(error).split())[:200]) from error


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every actor needs to build its worker."""

    config: Config
    prompts: Prompts
    boxes: list[BoxPrompt]
    exemplar_uri: str


class UnitActor:
    """A :class:`UnitWorker` that can be asked to stop; Ray runs ``stop`` beside ``process`` (two threads)."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = UnitWorker(spec.config, spec.prompts, spec.boxes, spec.exemplar_uri)

    def process(self, unit: Unit, units: str) -> Generator[UnitProgress | UnitReport]:
        """See :meth:`UnitWorker.process`. An interruption ends the stream after the commit."""
        with contextlib.suppress(KeyboardInterrupt):
            yield from self._worker.process(unit, Path(units))

    def stop(self) -> None:
        """Commit what is done of the unit at hand and end it."""
        self._worker.stop()

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()


@dataclass(slots=True)
class _Task:
    """A unit with its history."""

    unit: Unit
    attempts: int = 0
    workers: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Slot:
    """A place for one actor, and what it is doing."""

    number: int
    actor: Any = None
    stream: Any = None
    task: _Task | None = None
    generation: int = 0


class RayExecutor:
    """Runs units on ``workers`` actors of a connected cluster.

    Args:
        spec: what an actor builds its worker from.
        workers: actors; 0 is one per GPU of the cluster, or one per two CPUs where there is none.
        gpus_per_worker: a share below 1 packs several actors on a GPU.
    """

    def __init__(self, spec: WorkerSpec, *, workers: int = 0, gpus_per_worker: float | None = None) -> None:
        resources = ray.cluster_resources()
        has_gpus = resources.get("GPU", 0) > 0 and spec.config.device.name != "cpu"
        self._gpus = (gpus_per_worker if gpus_per_worker is not None else 1.0) if has_gpus else 0.0
        self._spec = ray.put(spec)
        self._slots = [_Slot(i) for i in range(workers or self._natural_size(resources))]
        self.num_retries = 0

    def _natural_size(self, resources: dict[str, float]) -> int:
        if self._gpus:
            return max(int(resources["GPU"] / self._gpus), 1)
        return max(int(resources.get("CPU", 1)) // 2, 1)

    def _start(self, slot: _Slot) -> None:
        slot.generation += 1
        slot.actor = (
            ray.remote(UnitActor)
            .options(
                name=f"masklet-{os.getpid()}-worker-{slot.number}-{slot.generation}",
                num_gpus=self._gpus,
                num_cpus=1,
                max_restarts=0,  # the coordinator starts a new one, so that it knows
                max_concurrency=2,
            )
            .remote(self._spec)
        )

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do every unit; progress and one report each, as they come. Closing early lets the workers commit."""
        waiting = deque(_Task(u) for u in todo)
        slots = self._slots[: max(len(waiting), 1)]
        try:
            while waiting or any(s.task for s in slots):
                self._hand_out(slots, waiting, units)
                yield from self._poll(slots, waiting, units)
        finally:
            self._drain(slots)

    def _hand_out(self, slots: list[_Slot], waiting: deque[_Task], units: Path) -> None:
        for slot in slots:
            if slot.task is None and waiting:
                if slot.actor is None:
                    self._start(slot)
                task = _next_for(slot, waiting)
                task.attempts += 1
                task.workers.add(slot.number)
                slot.task = task
                slot.stream = slot.actor.process.options(
                    num_returns="streaming", _generator_backpressure_num_objects=64
                ).remote(task.unit, str(units))

    def _poll(self, slots: list[_Slot], waiting: deque[_Task], units: Path) -> Generator[UnitProgress | UnitReport]:
        streams = {s.stream: s for s in slots if s.task is not None}
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=_POLL_S, fetch_local=False)
        for stream in ready:
            slot = streams[stream]
            event = self._next(slot, waiting, units)
            if event is not None:
                yield event

    def _next(self, slot: _Slot, waiting: deque[_Task], units: Path) -> UnitProgress | UnitReport | None:
        """The next thing a worker says; its end of stream or death settles the task."""
        task = slot.task
        assert task is not None
        try:
            event: UnitProgress | UnitReport = ray.get(next(slot.stream))
        except StopIteration:
            slot.task = slot.stream = None
            return self._retry(task, "ended without a report", waiting, units)
        except RayTaskError as error:
            slot.task = slot.stream = None
            cause = error.cause
            if isinstance(cause, MaskletError):
                raise cause from error
            return self._retry(task, _first_line(error), waiting, units)
        except (RayActorError, RayError) as error:
            slot.task = slot.stream = slot.actor = None
            return self._retry(task, _first_line(error), waiting, units)
        if isinstance(event, UnitReport):
            slot.task = slot.stream = None
        return event

    def _retry(self, task: _Task, why: str, waiting: deque[_Task], units: Path) -> UnitReport | None:
        """Queue a unit again, or set it aside; a commit whose acknowledgement got lost counts."""
        report = committed(units, task.unit.key)
        if report is not None:
            return report
        LOGGER.warning("%s: attempt %d failed: %s", task.unit.video_id, task.attempts, why)
        enough_workers = len(task.workers) >= min(MIN_WORKERS_TRIED, len(self._slots))
        if task.attempts >= MAX_ATTEMPTS and enough_workers:
            error = f"set aside after {task.attempts} attempts on {len(task.workers)} worker(s): {why}"
            return UnitReport(task.unit.key, task.unit.video_id, task.unit.ordinal, "failed", error=error)
        self.num_retries += 1
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
            if slot.actor is not None:
                with contextlib.suppress(RayError):
                    ray.kill(slot.actor)
                slot.actor = slot.task = slot.stream = None

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
        """End all actors."""
        self._drain(self._slots)


def _next_for(slot: _Slot, waiting: deque[_Task]) -> _Task:
    """The next unit, if possible one that this worker has not failed on."""
    for task in waiting:
        if slot.number not in task.workers:
            waiting.remove(task)
            return task
    return waiting.popleft()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:300]
