"""Doing units on this machine, one after another, in this process. The reference executor."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

from workers.unit_worker import UnitWorker
from workers.units import Unit, UnitProgress, UnitReport


class LocalExecutor:
    """Runs units with one worker in this process."""

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        """Do every unit; progress and reports as they come. Ctrl-C commits what was done and goes on up."""
        for unit in todo:
            yield from self._worker.process(unit, units)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
