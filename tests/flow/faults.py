"""Workers with a fault, for actors: what a unit does to its worker is written in a file beside the clips."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

from workers.unit_worker import UnitWorker
from workers.units import Unit, UnitProgress, UnitReport


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
