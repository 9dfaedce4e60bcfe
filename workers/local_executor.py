"""Doing units on this machine in this process: one after another, or a few in turns. The reference executor."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from pathlib import Path

from pipeline.errors import MaskletError
from workers.unit_worker import UnitWorker
from workers.units import MAX_ATTEMPTS, Attempt, Unit, UnitProgress, UnitReport, set_aside, write_log

LOGGER = logging.getLogger("masklet.worker")


_PROGRESS_EVERY_S = 0.5


class LocalExecutor:
    """Runs units in this process.

    Args:
        worker: does them, and is closed at the end.
        num_streams: how many units are under way at once; they take turns frame by frame, and their frames go through
            the detector together. Each has a decode process of its own.
    """

    num_workers = 1

    def __init__(self, worker: UnitWorker, num_streams: int = 1) -> None:
        self._workers = [worker]
        self._num_streams = num_streams
        self.num_retries = 0

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do every unit; progress and reports as they come. Ctrl-C commits what was done and goes on up."""
        if self._num_streams > 1:
            yield from self._in_turns(todo, units)
            return
        for unit in todo:
            yield from self._try(self._workers[0], unit, units)

    def _in_turns(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Up to ``num_streams`` units at once; every one gets on by a frame before the first has its turn again."""
        waiting = iter(todo)
        self._workers[0].progress_every_s = 0.0
        idle = list(self._workers)
        active: deque[tuple[UnitWorker, Generator[UnitProgress | UnitReport]]] = deque()
        told: dict[str, float] = {}
        try:
            while True:
                while len(active) < self._num_streams and (unit := next(waiting, None)) is not None:
                    worker = idle.pop() if idle else self._hire()
                    active.append((worker, self._try(worker, unit, units)))
                if not active:
                    return
                worker, events = active.popleft()
                event = next(events, None)
                if event is None:
                    idle.append(worker)
                    continue
                active.append((worker, events))
                if isinstance(event, UnitReport) or _is_due(event, told):
                    yield event
        finally:
            for _, events in active:
                events.close()

    def _hire(self) -> UnitWorker:
        """One more worker, on the models of the first."""
        self._workers.append(self._workers[0].sibling())
        return self._workers[-1]

    def _try(self, worker: UnitWorker, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """A unit that fails in a way nobody foresaw costs itself, not the job; memory may be there the next time."""
        failures: list[Attempt] = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                yield from worker.process(unit, units)
                return
            except MaskletError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
                LOGGER.warning("%s: attempt %d failed: %s", unit.video_id, attempt, why)
                LOGGER.debug("the traceback", exc_info=error)
                where = f"process {os.getpid()} on {socket.gethostname()}"
                failures.append(Attempt(where, why, "".join(traceback.format_exception(error))))
            self.num_retries += attempt < MAX_ATTEMPTS
        yield set_aside(unit, f"{MAX_ATTEMPTS} attempts", why, write_log(units.parent, unit, failures))

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()


def _is_due(progress: UnitProgress, told: dict[str, float]) -> bool:
    """Whether it is time to tell of this unit again; notes when it was."""
    now = time.monotonic()
    if progress.num_done and now - told.get(progress.key, -_PROGRESS_EVERY_S) < _PROGRESS_EVERY_S:
        return False
    told[progress.key] = now
    return True
