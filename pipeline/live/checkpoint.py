"""A camera's state on disk: saved whole every few seconds, and marks that are always up to date.

The state says how tracking goes on. The marks say what was already handed out when the process died: frames and
masklets are never numbered twice, even those that came after the last save. (Mapped pages outlive the process; after a
power cut the marks may be as old as the last save.)
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import RunError
from pipeline.store import write_atomically

VERSION = 3
LOGGER = logging.getLogger("masklet.live")
_CURRENT, _MARKS = "current.json", "marks.bin"
_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Past:
    """What was given out of a stream before: whoever goes on with it numbers after that."""

    next_frame: int = 0
    """Frames below were numbered."""
    num_masklets: int = 0
    """Masklets up to this one were numbered."""
    next_session: int = 0
    """Sessions below have been."""
    pts_s: float = 0.0
    """Stream time of the last frame."""
    wall_s: float = 0.0
    """Unix time of its arrival; 0 if not known."""


def joined(pasts: Iterable[Past]) -> Past:
    """After all of them."""
    marks = Marks(None)
    for past in pasts:
        marks.adopt(past)
    return marks.past


class Marks:
    """What one stream has given out so far, as in :class:`Past`; without a folder, it is forgotten with the process.

    ``marks.bin`` holds the numbers. ``births.txt`` lists the masklets that were born since the last save, so that those
    whose rows are handed out again get the same number. A folder that takes nothing more costs no frame: marks are
    then kept in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._values: Any = np.zeros(5, np.int64)
        self._births: Path | None = None
        self.num_failures = 0
        """Times that something could not be written."""
        if folder is not None:
            self._births = folder / "births.txt"
            try:
                self._values = _mapped(folder, self._values)
            except OSError:
                self._failed(folder)

    def _failed(self, where: Path) -> None:
        self.num_failures += 1
        if self.num_failures == 1:
            LOGGER.exception("%s cannot be written; after a kill, numbers may be given twice", where)

    @property
    def past(self) -> Past:
        """As one value."""
        frame, masklets, session, pts_us, wall_us = (int(v) for v in self._values)
        return Past(frame, masklets, session, pts_us / _US, wall_us / _US)

    @property
    def next_frame(self) -> int:
        """Frames below were numbered."""
        return int(self._values[0])

    @property
    def num_masklets(self) -> int:
        """Masklets up to this one were numbered."""
        return int(self._values[1])

    @property
    def next_session(self) -> int:
        """Sessions below have been."""
        return int(self._values[2])

    def update(self, next_frame: int, num_masklets: int, next_session: int = 0) -> None:
        """Raise the marks; they never fall."""
        head = self._values[:3]
        np.maximum(head, [next_frame, num_masklets, next_session], out=head)

    def saw(self, pts_s: float, wall_s: float) -> None:
        """Note when the last frame came."""
        self._values[3:] = [round(pts_s * _US), round(wall_s * _US)]

    def adopt(self, past: Past) -> None:
        """Number after what others know of this stream."""
        if past.next_frame > self.next_frame:
            self.saw(past.pts_s, past.wall_s)
        self.update(past.next_frame, past.num_masklets, past.next_session)

    def note_births(self, session: int, births: Mapping[int, int]) -> None:
        """Remember the masklet ids of these track ids until the next save."""
        if self._births is None or not births:
            return
        try:
            with open(self._births, "a") as file:
                file.write("".join(f"{session} {track} {masklet}\n" for track, masklet in births.items()))
        except OSError:
            self._failed(self._births)

    def births(self, session: int) -> dict[int, int]:
        """Masklet ids by track id of this session that were noted since the last save."""
        return {track: masklet for of, track, masklet in self._noted() if of == session}

    def saved(self, num_masklets: int) -> None:
        """A state was saved that knows the masklets up to this one."""
        if isinstance(self._values, np.memmap):
            self._values.flush()
        if self._births is None or not self._births.exists():
            return
        later = [f"{of} {track} {masklet}\n" for of, track, masklet in self._noted() if masklet > num_masklets]
        write_atomically(self._births, "".join(later).encode())

    def _noted(self) -> Iterator[tuple[int, int, int]]:
        """Session, track and masklet of each birth; a torn line is passed over."""
        if self._births is None or not self._births.exists():
            return
        for line in self._births.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) == 3 and all(w.isdecimal() for w in words):
                yield int(words[0]), int(words[1]), int(words[2])


def _mapped(folder: Path, fresh: Any) -> Any:
    """The marks of ``folder``, shared with its file; an older file has fewer of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _MARKS
    data = path.read_bytes() if path.exists() else b""
    if len(data) != fresh.nbytes:
        write_atomically(path, data[: len(data) // 8 * 8].ljust(fresh.nbytes, b"\0")[: fresh.nbytes])
    return np.memmap(path, np.int64, "r+", shape=fresh.shape)


def drop_state(folder: Path, *, keep_marks: bool) -> None:
    """Nothing goes on from a stream that has ended; with its marks, a later one of its name numbers after it."""
    if not keep_marks:
        shutil.rmtree(folder, ignore_errors=True)
        return
    (folder / _CURRENT).unlink(missing_ok=True)
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _MARKS:
            path.unlink(missing_ok=True)


def prepare_state(folder: Path, state: dict[str, Any], save_tracker: Callable[[Path], None]) -> Callable[[], None]:
    """Write a state beside the current one; calling what is returned makes it the current one, by one rename."""
    last = _current(folder)
    name = f"state-{(int(last.rpartition('-')[2]) + 1 if last else 0):08d}"
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_tracker(target / "tracker")
    (target / "stream.json").write_text(json.dumps({"version": VERSION, **state}))
    _fsync(target)

    def commit() -> None:
        write_atomically(folder / _CURRENT, json.dumps({"state": name}).encode())
        for old in folder.glob("state-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    return commit


def _fsync(folder: Path) -> None:
    """Have everything in ``folder`` on the disk before a rename says that it is there."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def saved_phrases(folder: Path) -> list[str]:
    """The phrases a saved state was looking for; empty without one that can be read."""
    try:
        loaded = load_state(folder)
        phrases = loaded[0]["phrases"] if loaded is not None else {"active": []}
        return [str(phrases["slots"][slot]) for slot in phrases["active"]]
    except (RunError, KeyError, IndexError, TypeError):
        return []


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
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise RunError("the saved state is of another version", str(folder), "remove it to start afresh")
    return state, folder / name / "tracker"


def _current(folder: Path) -> str:
    try:
        return str(json.loads((folder / _CURRENT).read_text())["state"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError("the saved state of a stream is damaged", str(folder), "remove it to start afresh") from error
