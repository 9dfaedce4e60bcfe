"""A camera's state on disk: saved whole every few seconds, and marks that are always up to date.

The state says how tracking goes on. The marks say what was already handed out when the process died: frames and
masklets are never numbered twice, even those that came after the last save. (Mapped pages outlive the process; after a
power cut the marks may be as old as the last save.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import RunError
from pipeline.store import write_atomically

VERSION = 1
_CURRENT = "current.json"


class Marks:
    """What one stream has given out so far; without a folder, nothing is kept.

    ``marks.bin`` holds the next frame number and the number of masklets. ``births.txt`` lists the masklets that were
    born since the last save, so that those whose rows are handed out again get the same number.
    """

    def __init__(self, folder: Path | None) -> None:
        self._values: Any = np.zeros(2, np.int64)
        self._births: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "marks.bin"
            if not path.exists() or path.stat().st_size != self._values.nbytes:
                path.write_bytes(self._values.tobytes())
            self._values = np.memmap(path, np.int64, "r+", shape=(2,))
            self._births = folder / "births.txt"

    @property
    def next_frame(self) -> int:
        """Frames below were numbered."""
        return int(self._values[0])

    @property
    def num_masklets(self) -> int:
        """Masklets up to this one were numbered."""
        return int(self._values[1])

    def update(self, next_frame: int, num_masklets: int) -> None:
        """Raise the marks; they never fall."""
        np.maximum(self._values, [next_frame, num_masklets], out=self._values)

    def note_births(self, session: int, births: Mapping[int, int]) -> None:
        """Remember the masklet ids of these track ids until the next save."""
        if self._births is not None and births:
            with open(self._births, "a") as file:
                file.write("".join(f"{session} {track} {masklet}\n" for track, masklet in births.items()))

    def births(self, session: int) -> dict[int, int]:
        """Masklet ids by track id of this session that were noted since the last save."""
        if self._births is None or not self._births.exists():
            return {}
        rows = [line.split() for line in self._births.read_text().splitlines()]
        return {int(r[1]): int(r[2]) for r in rows if len(r) == 3 and int(r[0]) == session}

    def saved(self, num_masklets: int) -> None:
        """A state was saved that knows the masklets up to this one."""
        if self._births is None or not self._births.exists():
            return
        later = [line for line in self._births.read_text().splitlines() if int(line.split()[2]) > num_masklets]
        write_atomically(self._births, "".join(f"{line}\n" for line in later).encode())


def prepare_state(folder: Path, state: dict[str, Any], save_tracker: Callable[[Path], None]) -> Callable[[], None]:
    """Write a state beside the current one; calling what is returned makes it the current one, by one rename."""
    last = _current(folder)
    name = f"state-{(int(last.rpartition('-')[2]) + 1 if last else 0):08d}"
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_tracker(target / "tracker")
    (target / "stream.json").write_text(json.dumps({"version": VERSION, **state}))

    def commit() -> None:
        write_atomically(folder / _CURRENT, json.dumps({"state": name}).encode())
        for old in folder.glob("state-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    return commit


def saved_phrases(folder: Path) -> list[str]:
    """The phrases a saved state was looking for; empty without one."""
    loaded = load_state(folder)
    if loaded is None:
        return []
    phrases = loaded[0]["phrases"]
    return [phrases["slots"][slot] for slot in phrases["active"]]


def load_state(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The current state and its tracker's folder; ``None`` if none was saved.

    Raises:
        RunError: damaged, or of another version.
    """
    name = _current(folder)
    if not name:
        return None
    try:
        state: dict[str, Any] = json.loads((folder / name / "stream.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError("the saved state of a stream is damaged", str(folder), "remove it to start afresh") from error
    if state.get("version") != VERSION:
        raise RunError("the saved state is of another version", str(folder), "remove it to start afresh")
    return state, folder / name / "tracker"


def _current(folder: Path) -> str:
    try:
        return str(json.loads((folder / _CURRENT).read_text())["state"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError) as error:
        raise RunError("the saved state of a stream is damaged", str(folder), "remove it to start afresh") from error
