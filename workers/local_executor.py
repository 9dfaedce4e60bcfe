"""Doing units on this machine, one after another, in this process. The reference executor."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from pathlib import Path

from pipeline.errors import MaskletError
from workers.unit_worker import UnitWorker
from workers.units import MAX_ATTEMPTS, Unit, UnitProgress, UnitReport, set_aside

LOGGER = logging.getLogger("masklet.worker")


class LocalExecutor:
    """Runs units with one worker in this process."""

    num_workers = 1

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker
        self.num_retries = 0

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do every unit; progress and reports as they come. Ctrl-C commits what was done and goes on up."""
        for unit in todo:
            yield from self._try(unit, units)

    def _try(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """A unit that fails in a way nobody foresaw costs itself, not the job; memory may be there the next time."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                yield from self._worker.process(unit, units)
                return
            except MaskletError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
                LOGGER.warning("%s: attempt %d failed: %s", unit.video_id, attempt, why)
                LOGGER.debug("the traceback", exc_info=error)
            self.num_retries += attempt < MAX_ATTEMPTS
        yield set_aside(unit, f"{MAX_ATTEMPTS} attempts", why)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
