"""Workers with a fault, for actors."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config
from pipeline.errors import DeviceError
from pipeline.results import FrameResult
from pipeline.types import BoxPrompt, Prompts
from workers.unit_worker import UnitWorker
from workers.units import Unit, UnitFolder, UnitProgress, UnitReport


class FaultyWorker(UnitWorker):
    """Meets ``FAULT`` in ``CLIPS/faults/VIDEO_ID``, each time or ``once``.

    ``kill``, ``hang``, ``memory`` (of the machine) or ``device`` (its memory is full).
    """

    def process(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """Track the unit, if its fault lets it."""
        path = Path(unit.uri).parent / "faults" / unit.video_id
        fault, _, how_often = path.read_text().partition(" ") if path.exists() else ("", "", "")
        if how_often == "once":
            path.unlink()
        self.fault = fault
        for event in super().process(unit, units):
            yield event
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(3600)
            if fault == "memory":
                raise MemoryError("injected")

    def _follow(self, *arguments: Any, **options: Any) -> Iterator[FrameResult]:
        frames = super()._follow(*arguments, **options)
        return _full(frames) if self.fault == "device" else frames


def _full(frames: Iterator[FrameResult]) -> Iterator[FrameResult]:
    yield next(frames)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore that is of no interest")


class Picky:
    """Makes workers, but not the first so many times: then the device is not there."""

    def __init__(self, folder: Path, failures: int) -> None:
        self.folder, self.failures = folder, failures

    def __call__(self, config: Config, prompts: Prompts, boxes: list[BoxPrompt], uri: str) -> UnitWorker:
        for number in range(self.failures):
            with contextlib.suppress(FileExistsError):
                (self.folder / f"failure{number}").mkdir()
                raise DeviceError("no such device: cuda:0", "", "use --device cpu")
        return UnitWorker(config, prompts, boxes, uri)


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
