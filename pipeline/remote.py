"""A run folder in object storage: written through a local spool folder, each file by a single PUT of its final key.

Object stores have no rename, so nothing is ever written there under another name. A video's parts are uploaded once
they are final, then the manifest that lists it: whoever finds a video in the manifest finds its parts. What is not
finished stays in the spool, on this machine: a resumed run here goes on from it; elsewhere, unfinished videos start
anew. Any address fsspec knows will do (``s3://``, ``gs://``, ``az://``, ``memory://`` ...).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from pipeline.decode import local_path, redact, scheme_of
from pipeline.errors import MaskletError, RunError, RunExistsError, UsageError
from pipeline.telemetry import LOGGER

_LISTED = "manifest.json"
_PAUSES_S = (1.0, 4.0)
"""Before the second and the third try of a request."""


class RemoteFolder:
    """A folder in object storage and its local spool.

    Args:
        url: the folder's address.
        spool: where files are before they are uploaded.

    Raises:
        UsageError: no driver for this kind of address.
    """

    def __init__(self, url: str, spool: Path) -> None:
        self.spool, self._shown = spool, redact(url)
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"no driver for {scheme_of(url)}://", self._shown, f"install it: {error}") from error
        self._root: str = root.rstrip("/")

    def exists(self) -> bool:
        """Whether a run stands there."""
        return bool(self._do("look", self._files.exists, self._key(_LISTED)))

    def put(self, path: Path) -> None:
        """Upload a file of the spool, or make a folder there hold exactly the files of the spool's.

        New files first, then what is left over is removed: nobody sees a video without its parts.
        """
        if path.is_file():
            self._do("write", self._files.put_file, str(path), self._key(self._name(path)))
            return
        wanted = {self._key(self._name(p)): p for p in sorted(path.rglob("*")) if p.is_file()}
        for file in wanted.values():
            self.put(file)
        for key in self._keys(self._name(path)):
            if key not in wanted:
                self._do("write", self._remove, key)

    def pull(self) -> None:
        """Bring manifest and rows into the spool, which keeps what it has beside them; sizes tell what is missing."""
        for key in self._keys(""):
            target = self.spool / key.removeprefix(self._root + "/")
            size = self._do("read", self._files.info, key)["size"]
            if target.name == _LISTED or not target.exists() or target.stat().st_size != size:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._do("read", self._files.get_file, key, str(target))

    def remove(self) -> None:
        """Remove the run, its manifest first: from then on there is none."""
        keys = self._keys("")
        for key in sorted(keys, key=lambda k: (not k.endswith("/" + _LISTED), k)):
            self._do("write", self._remove, key)

    def _keys(self, name: str) -> list[str]:
        def listed() -> list[str]:
            with suppress(FileNotFoundError):
                return sorted(str(k) for k in self._files.find(self._key(name)))
            return []

        found: list[str] = self._do("read", listed)
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.spool).as_posix()

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _do(self, what: str, action: Callable[..., Any], *arguments: str) -> Any:
        """Do it, and again after a pause if it fails: stores refuse now and then, and all of these can be repeated."""
        pauses_s = list(_PAUSES_S)
        while True:
            try:
                return action(*arguments)
            except MaskletError:
                raise
            except Exception as error:  # every driver has its own exceptions for wrong keys, buckets and networks
                why = " ".join(str(error).split()) or type(error).__name__
                if not pauses_s or isinstance(error, PermissionError | FileNotFoundError):
                    todo = "check address and credentials, then add --resume"
                    raise RunError(f"cannot {what}: {why}", self._shown, todo) from error
            LOGGER.warning("%s: cannot %s, trying again: %s", self._shown, what, why)
            time.sleep(pauses_s.pop(0))

    def _remove(self, key: str) -> None:
        with suppress(FileNotFoundError):  # removed by the try before, whose answer got lost
            self._files.rm_file(key)


@contextmanager
def open_folder(
    out: str, *, resume: bool = False, overwrite: bool = False
) -> Iterator[tuple[Path, RemoteFolder | None]]:
    """Where to write a run that shall stand at ``out``: ``(folder, its remote twin or None)``.

    The spool is removed when the block ends and nothing is left to do, and kept for ``--resume`` otherwise.

    Raises:
        RunExistsError: a run stands there and neither ``resume`` nor ``overwrite`` is set.
        RunError: the storage cannot be reached.
    """
    if not scheme_of(out):
        yield local_path(out), None
        return
    spool = _spools() / hashlib.sha256(out.rstrip("/").encode()).hexdigest()[:16]
    remote = RemoteFolder(out, spool)
    if remote.exists() and not resume and not overwrite:
        todo = "add --resume to continue it, --overwrite to replace it, or choose another -o"
        raise RunExistsError("the run exists", redact(out), todo)
    if not resume:
        shutil.rmtree(spool, ignore_errors=True)
        remote.remove()
    spool.mkdir(parents=True, exist_ok=True)
    remote.pull()
    yield spool, remote
    if not (spool / ".units").exists():
        shutil.rmtree(spool, ignore_errors=True)


def _spools() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "masklet" / "spool"
