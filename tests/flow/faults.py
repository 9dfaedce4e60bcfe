"""Workers with a fault, for actors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

from configs.schema import Config
from pipeline.types import BoxPrompt, Prompts
from workers.unit_worker import UnitWorker
from workers.units import Unit, UnitFolder, UnitProgress, UnitReport


class FaultyWorker(UnitWorker):
    """Meets ``FAULT`` in ``CLIPS/faults/VIDEO_ID`` (``kill``, ``hang`` or ``memory``), each time or ``once``."""

    def process(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """Track the unit, if its fault lets it."""
        path = Path(unit.uri).parent / "faults" / unit.video_id
        fault, _, how_often = path.read_text().partition(" ") if path.exists() else ("", "", "")
        if how_often == "once":
            path.unlink()
        for event in super().process(unit, units):
            yield event
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(3600)
            if fault == "memory":
                raise MemoryError("injected")


class NeverStarts:
    """Cannot be unpickled by any actor."""

    def __getstate__(self) -> dict[str, int]:
        return {"some": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        raise RuntimeError("it is broken")


class LateToStart:
    """Makes workers that sleep for their units; all actors but the first take seconds to start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(state)
        try:
            (self.folder / "first").mkdir()
        except FileExistsError:
            time.sleep(3.0)

    def __call__(self, config: Config, prompts: Prompts, boxes: list[BoxPrompt], uri: str) -> LateToStart:
        return self

    def process(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """Sleep, say so often, and commit nothing in particular."""
        folder = UnitFolder(units, unit.key)
        for step in range(int(unit.cost * 10)):
            yield UnitProgress(unit.key, unit.video_id, step, int(unit.cost * 10), 0)
            time.sleep(0.1)
        report = UnitReport(unit.key, unit.video_id, unit.ordinal, "done", num_tracked=os.getpid())
        folder.commit(report)
        yield report

    def stop(self) -> None:
        """Nothing to stop."""
