"""What a source is known by, and whose fault a failed attempt was."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import av
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import DecodeError, MaskletError, NoVideoError, SourceChangedError, SourceError, UsageError
from workers.unit_worker import _report_of
from workers.units import Unit, absent, check_token, fingerprint, look_at, remove_attempts, write_token


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/videos"):
        files.rm("/videos", recursive=True)


def test_an_object_is_known_by_what_its_store_says(store: MemoryFileSystem) -> None:
    store.pipe_file("/videos/a.mp4", b"123")
    first = look_at("memory://videos/a.mp4")
    assert first.num_bytes == 3
    assert fingerprint("memory://videos/a.mp4", is_fresh=True) == first.fingerprint
    store.pipe_file("/videos/b.mp4", b"123")
    assert fingerprint("memory://videos/b.mp4") != first.fingerprint
    store.pipe_file("/videos/a.mp4", b"1234")
    assert fingerprint("memory://videos/a.mp4", is_fresh=True) != first.fingerprint
    assert fingerprint("memory://videos/gone.mp4") == absent("memory://videos/gone.mp4")


def test_a_store_that_does_not_answer_is_the_sources_error(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("token expired\nat line 3")

    monkeypatch.setattr(MemoryFileSystem, "info", refuses)
    with pytest.raises(SourceError, match="cannot be read: token expired at line 3"):
        fingerprint("memory://videos/a.mp4")


def test_a_folder_of_pictures_is_as_large_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"12")
    (tmp_path / "2.png").write_bytes(b"345")
    first = look_at(str(tmp_path))
    assert first.num_bytes == 5
    (tmp_path / "2.png").write_bytes(b"3456")
    assert fingerprint(str(tmp_path)) != first.fingerprint
    (tmp_path / "v.mp4").write_bytes(b"12345")
    assert look_at((tmp_path / "v.mp4").as_uri()).num_bytes == 5


def caused(error: MaskletError, cause: Exception | None) -> MaskletError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "uri", "source", "retry"),
    [
        (caused(SourceError("x"), TimeoutError()), "s3://b/v.mp4", "f", "elsewhere"),
        (caused(SourceError("x"), ImportError()), "s3://b/v.mp4", "f", "elsewhere"),
        (DecodeError("the connection broke"), "https://h/v.mp4", "f", "elsewhere"),
        (caused(SourceError("x"), FileNotFoundError()), "s3://b/v.mp4", "f", ""),
        (caused(SourceError("x"), av.error.InvalidDataError(1, "x")), "s3://b/v.mp4", "f", ""),
        (NoVideoError("x"), "s3://b/v.mp4", "f", ""),
        (SourceChangedError("x"), "s3://b/v.mp4", "f", ""),
        (caused(SourceError("x"), OSError(errno.EIO, "x")), __file__, "f", "elsewhere"),
        (SourceError("no such file"), "/nowhere/v.mp4", "f", "elsewhere"),  # the coordinator saw it
        (SourceError("no such file"), "/nowhere/v.mp4", absent("/nowhere/v.mp4"), ""),
        (DecodeError("damaged"), __file__, "f", ""),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), __file__, "f", "elsewhere"),
    ],
)
def test_what_is_around_a_video_is_not_its_fault(error: Exception, uri: str, source: str, retry: str) -> None:
    report = _report_of(error, Unit("k", "v", uri, source=source), Path("run/.units"))
    assert report is not None
    assert (report.status, report.retry) == ("failed", retry)


def test_what_nobody_foresaw_is_not_a_report() -> None:
    assert _report_of(ValueError("x"), Unit("k", "v", "v.mp4"), Path("run/.units")) is None
    assert _report_of(RuntimeError("x"), Unit("k", "v", "v.mp4"), Path("run/.units")) is None


def test_a_worker_knows_whether_it_sees_the_coordinators_folder(tmp_path: Path) -> None:
    (tmp_path / ".units").mkdir()
    token = write_token(tmp_path / ".units")
    check_token(tmp_path / ".units", token, 0.0)
    with pytest.raises(UsageError, match=r"does not see the run folder .*XDG_CACHE_HOME"):
        check_token(tmp_path / "elsewhere", token, 0.0)
    with pytest.raises(UsageError, match="does not see"):
        check_token(tmp_path / ".units", "another", 0.0)
    remove_attempts(tmp_path / ".units")
    assert not list((tmp_path / ".units").iterdir())
