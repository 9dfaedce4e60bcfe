"""Cameras that were added from the page, so that a restarted stream has them again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import RunError
from pipeline.sources.live_open import CameraSpec


class Roster:
    """``state/cameras.json``, readable by its owner alone: the one place of a run folder where addresses keep their
    passwords, because without them the cameras could not be opened again. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "cameras.json" if folder is not None else None

    def cameras(self) -> list[tuple[CameraSpec, list[str]]]:
        """What was added and not removed, with its phrases.

        Raises:
            RunError: the file is damaged.
        """
        if self._path is None or not self._path.exists():
            return []
        try:
            kept = json.loads(self._path.read_text())
            return [(CameraSpec(c["stream_id"], c["uri"]), list(c["phrases"])) for c in kept]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError("the list of added cameras is damaged", str(self._path), "remove it") from error

    def add(self, spec: CameraSpec, phrases: Sequence[str]) -> None:
        """Keep a camera."""
        self._write([*self._others(spec.stream_id), (spec, list(phrases))])

    def remove(self, stream_id: str) -> None:
        """Forget a camera."""
        self._write(self._others(stream_id))

    def _others(self, stream_id: str) -> list[tuple[CameraSpec, list[str]]]:
        return [(spec, phrases) for spec, phrases in self.cameras() if spec.stream_id != stream_id]

    def _write(self, cameras: Sequence[tuple[CameraSpec, list[str]]]) -> None:
        if self._path is None or (not cameras and not self._path.exists()):
            return
        values = [{"stream_id": s.stream_id, "uri": s.uri, "phrases": p} for s, p in cameras]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
