"""Units of work: pure functions of (source, range, phrases, configuration, weights) with a name made of exactly these.

A unit's output is one folder ``UNITS/KEY/`` that appears by atomic rename: ``masklets/part-*.parquet`` with ids local
to the unit, and ``unit.json`` with how it went and a checksum of every part. Whoever finds the folder need not do the
unit again; whoever dies before the rename leaves nothing that counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from pipeline.decode import local_path, redact, scheme_of
from pipeline.errors import SourceError, UsageError
from pipeline.store import LOGS, sync_folder, write_atomically

_HEAD_BYTES = 1 << 20
_WEB = ("http", "https")
"""Asking costs a request more, and many servers name neither version nor size."""
_OBJECT_FACTS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "generation")
"""What S3, GCS, Azure and fsspec's own file systems call them."""
LOOKS = "looks.npz"
"""In a chunk's folder: how its objects looked, for the stitching."""
STEPS = ".steps"
"""Beside the units: pieces of units that are done in steps (:mod:`workers.steps`); attempts come and go, they stay."""
TOKEN = ".token"
"""Among the units: what the coordinator wrote there, for workers to find that they see the same folder."""
MAX_ATTEMPTS = 3
"""A unit that failed so often in a way nobody foresaw is set aside, so that the job goes on."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A video, or one chunk of it, to be tracked from a fresh start."""

    key: str
    """Names the output: equal keys mean equal rows."""
    video_id: str
    uri: str
    ordinal: int = 0
    """0-based position in its video."""
    start: int | None = None
    """First frame index, overlap included; ``None``: as the configuration's sampling says."""
    stop: int | None = None
    """One past the last frame index, overlap included."""
    cost: float = 0.0
    """Relative size, to start the longest first."""
    source: str = ""
    """:func:`fingerprint` of the source when the unit was planned; empty: not checked."""


@dataclass(slots=True)
class UnitReport:
    """How a unit went; what ``unit.json`` holds."""

    key: str
    video_id: str
    ordinal: int
    status: str
    """``done``, ``partial`` or ``failed``."""
    start: int = 0
    stop: int = 0
    width: int = 0
    height: int = 0
    fps: str | None = None
    num_frames: int = 0
    """Frames of the whole video that decode, as far as this unit knows."""
    num_tracked: int = 0
    num_masklets: int = 0
    duration_s: float | None = None
    error: str | None = None
    decoders: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    retry: str = ""
    """Of a failed one, whether another attempt may do better: ``elsewhere`` (what is around this worker failed it),
    ``afresh`` (the worker needs replacing, too), or empty: the video itself is at fault."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 by path in the folder, of every file."""


@dataclass(frozen=True, slots=True)
class UnitProgress:
    """Sent while a unit runs, at most about once a second."""

    key: str
    video_id: str
    num_done: int
    num_expected: int
    num_objects: int
    """Objects on the last frame."""
    slowest: str = ""
    """The stage that took most of the time so far."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One that failed."""

    where: str
    """The worker, its process and its node."""
    why: str
    """In one line."""
    details: str = ""
    """A traceback, if there is one."""


def write_log(run: Path, unit: Unit, attempts: Sequence[Attempt]) -> str:
    """Put down how every attempt at a unit failed; the file's name in the run folder, or empty where it has no room."""
    name = f"{LOGS}/{unit.key}.txt"
    span = "" if unit.start is None else f", frames {unit.start}..{unit.stop}"
    lines = [f"{unit.video_id}{span}: {redact(unit.uri)}"]
    for number, attempt in enumerate(attempts, 1):
        lines += ["", f"attempt {number}: {attempt.where}", attempt.why, attempt.details.rstrip()]
    try:
        (run / LOGS).mkdir(exist_ok=True)
        write_atomically(run / name, ("\n".join(lines) + "\n").encode())
    except OSError:
        return ""
    return name


def set_aside(unit: Unit, tried: str, why: str, log: str = "") -> UnitReport:
    """The report of a unit that is given up: what was ``tried``, ``why`` the last attempt failed, and where all is."""
    see = f" (see {log})" if log else ""
    return failed(unit, f"set aside after {tried}: {why}{see}")


def failed(unit: Unit, error: str, retry: str = "") -> UnitReport:
    """The report of a unit of which nothing is kept; ``retry`` as in :class:`UnitReport`."""
    return UnitReport(
        unit.key, unit.video_id, unit.ordinal, "failed", unit.start or 0, unit.stop or 0, error=error, retry=retry
    )


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a source is now."""

    fingerprint: str
    """Tells one version of it from another."""
    num_bytes: float = 0.0
    """0: not known."""


def look_at(uri: str, *, is_fresh: bool = False) -> SourceState:
    """What stands at an address, without reading all of it.

    A file is known by size, time of change and its first and last megabyte; a folder of pictures by their names, sizes
    and times; an object in storage by what its store says of it (``ETag``, size, times). ``http(s)`` addresses, and
    what is not there, are known by the address only.

    Args:
        is_fresh: ask an object store again, whatever its driver remembers.

    Raises:
        SourceError: it is there and cannot be read.
    """
    scheme = scheme_of(uri)
    try:
        if scheme:
            return SourceState(absent(uri)) if scheme in _WEB else _object_state(uri, is_fresh)
        return _local_state(uri)
    except FileNotFoundError:
        return SourceState(absent(uri))
    except ImportError as error:
        raise SourceError(f"no driver for {scheme}://", redact(uri), f"install it: {error}") from error
    except OSError as error:
        raise SourceError(
            f"cannot be read: {error.strerror or error}", redact(uri), "check its access rights"
        ) from error
    except Exception as error:  # every driver has its own for wrong keys, buckets and networks
        if not scheme:
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"cannot be read: {why}", redact(uri), "check the address and your credentials") from error


def fingerprint(uri: str, *, is_fresh: bool = False) -> str:
    """The fingerprint :func:`look_at` finds."""
    return look_at(uri, is_fresh=is_fresh).fingerprint


def absent(uri: str) -> str:
    """The fingerprint of what is not there."""
    return _digest([uri.encode()])


def _local_state(uri: str) -> SourceState:
    path = local_path(uri)
    if path.is_dir():
        files = [(p.name, p.stat()) for p in path.iterdir() if p.is_file()]
        stamps = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
        return SourceState(_digest([str(stamps).encode()]), float(sum(size for _, size, _ in stamps)))
    if not path.is_file():
        return SourceState(absent(uri))
    stat = path.stat()
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(stat.st_size - _HEAD_BYTES, 0))
        parts = [f"{stat.st_size} {stat.st_mtime_ns}".encode(), head, file.read()]
    return SourceState(_digest(parts), float(stat.st_size))


def _object_state(uri: str, is_fresh: bool) -> SourceState:
    system, path = fsspec.core.url_to_fs(uri)
    if is_fresh:
        system.invalidate_cache()
    info = system.info(path)
    known = [f"{name}={info[name]}".encode() for name in _OBJECT_FACTS if info.get(name) is not None]
    return SourceState(_digest([uri.encode(), *known]), float(info.get("size") or 0))


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, or of all files under a folder with their names.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_dir():
        return _sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return _digest(part.encode() for p in files for part in (p.relative_to(path).as_posix(), _sha256(p)))


def unit_key(source: str, start: int | None, stop: int | None, plan: Iterable[str]) -> str:
    """The key of a unit. ``source`` is its :func:`fingerprint`; ``plan`` what else decides its rows."""
    return _digest([source.encode(), f"{start}:{stop}".encode(), *(p.encode() for p in plan)])[:24]


def _digest(parts: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def write_token(units: Path) -> str:
    """Leave a sign among the units; returns what it says."""
    token = uuid4().hex
    write_atomically(units / TOKEN, token.encode())
    return token


def check_token(units: Path, token: str, patience_s: float = 20.0) -> None:
    """Make sure that this worker sees the coordinator's folder; a network file system may show it a moment late.

    Raises:
        UsageError: it does not.
    """
    deadline = time.monotonic() + patience_s
    while True:
        with suppress(OSError):
            if (units / TOKEN).read_text() == token:
                return
        if time.monotonic() >= deadline:
            raise UsageError(
                "a worker's node does not see the run folder",
                f"{units.parent} on {socket.gethostname()}",
                "name an -o that all nodes mount (for an address such as s3:// point XDG_CACHE_HOME to such a folder, "
                "its files pass through there), or use one node",
            )
        time.sleep(min(0.5, patience_s))


class UnitFolder:
    """Where one attempt at a unit writes, until :meth:`commit` makes it count."""

    def __init__(self, units: Path, key: str) -> None:
        self.final = units / key
        # A name of its own keeps two attempts apart: a worker that was taken for dead may still be writing.
        self.temporary = units / f".{key}.{uuid4().hex[:8]}"
        self.masklets.mkdir(parents=True)

    @property
    def masklets(self) -> Path:
        """Where the parts go."""
        return self.temporary / "masklets"

    def commit(self, report: UnitReport) -> None:
        """Write ``unit.json`` and make the folder appear under its final name, once."""
        files = sorted(p for p in self.temporary.rglob("*") if p.is_file())
        report.checksums = {p.relative_to(self.temporary).as_posix(): _sha256(p) for p in files}
        text = json.dumps(asdict(report), indent=1, ensure_ascii=False)
        for file in files:
            if file.suffix != ".parquet":  # parts were synced when they were written
                _sync_file(file)
        for folder in {file.parent for file in files}:
            sync_folder(folder)
        write_atomically(self.temporary / "unit.json", text.encode())
        try:
            os.rename(self.temporary, self.final)
            sync_folder(self.final.parent)
        except OSError:
            # Another attempt at the same unit was faster; its rows are the same.
            if not (self.final / "unit.json").exists():
                raise
            self.discard()

    def discard(self) -> None:
        """Leave nothing of this attempt."""
        shutil.rmtree(self.temporary, ignore_errors=True)


def committed(units: Path, key: str) -> UnitReport | None:
    """The report of a unit that was committed, or ``None``; a damaged one is removed and counts as not done."""
    folder = units / key
    try:
        raw: dict[str, Any] = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
        report = UnitReport(**raw)
        intact = all(_sha256(folder / n) == s for n, s in report.checksums.items())
    except (OSError, ValueError, TypeError):
        intact = False
    if intact:
        return report
    shutil.rmtree(folder, ignore_errors=True)
    return None


def remove_attempts(units: Path) -> None:
    """Remove what attempts that never finished left behind."""
    (units / TOKEN).unlink(missing_ok=True)
    for folder in units.glob(".*"):
        if folder.name != STEPS:
            shutil.rmtree(folder, ignore_errors=True)


def link_parts(source: Path, target: Path, skip: int = 0) -> int:
    """Give ``target`` the parts of ``source`` after the first ``skip``, without copying where possible; their number.

    Raises:
        OSError: there is no room.
    """
    parts = sorted(source.glob("part-*.parquet"))[skip:]
    for part in parts:
        try:
            os.link(part, target / part.name)
        except OSError:  # a file system without hard links; a real failure shows again here
            shutil.copy2(part, target / part.name)
            _sync_file(target / part.name)
    return len(parts)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder where another may stand.

    Raises:
        OSError: it cannot be.
    """
    sync_folder(new)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(new, target)
    sync_folder(target.parent)


def remove_unit(units: Path, key: str) -> None:
    """Remove a unit whose rows stand elsewhere."""
    shutil.rmtree(units / key, ignore_errors=True)


def remove_units_of(units: Path, video_ids: Container[str]) -> None:
    """Remove what is left of videos that need it no more."""
    for folder in units.glob("[!.]*"):
        try:
            video_id = json.loads((folder / "unit.json").read_text(encoding="utf-8"))["video_id"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if video_id in video_ids:
            shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
