"""What is no video, or not the same any more, gives one line that says what, where and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import has_decord, probe, read, redact
from pipeline.errors import DecodeError, NoVideoError, SourceChangedError, SourceError
from tests import synth


def _message(error: pytest.ExceptionInfo[SourceError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert error.value.where in text
    assert error.value.todo
    return text


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        probe(str(tmp_path / "no.mp4"), "x")
    assert "no such file" in _message(error)


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").touch()
    with pytest.raises(SourceError) as error:
        probe(str(tmp_path / "zero.mp4"), "x")
    assert "empty" in _message(error)


@pytest.mark.parametrize("name", ["garbage.mp4", "garbage.ts", "garbage"])
def test_garbage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(3).bytes(20_000))
    with pytest.raises(SourceError) as error:
        probe(str(tmp_path / name), "x")
    assert _message(error)


def test_audio_only(tmp_path: Path) -> None:
    path = synth.audio_only(tmp_path / "talk.mp4")
    with pytest.raises(NoVideoError) as error:
        probe(str(path), "x")
    assert "audio only" in _message(error)


def test_index_lost_at_the_end(tmp_path: Path) -> None:
    path = synth.video(tmp_path / "a.mp4", 30)
    synth.cut(path, 0.5)
    with pytest.raises(SourceError) as error:
        probe(str(path), "x")
    assert "damaged" in _message(error)


def test_nothing_decodes(tmp_path: Path) -> None:
    path = synth.video(tmp_path / "a.mp4", 10)
    synth.wreck(path, 0, 10)
    with pytest.raises(NoVideoError) as error:
        probe(str(path), "x")
    assert "not one frame" in _message(error)


def test_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        probe(str(tmp_path), "x")
    assert _message(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = synth.video(tmp_path / "a.mp4", 2)
    path.chmod(0)
    with pytest.raises(SourceError) as error:
        probe(str(path), "x")
    assert "permission" in _message(error)


def test_changed_after_the_probe(tmp_path: Path) -> None:
    path = synth.video(tmp_path / "a.mp4", 5)
    table = probe(str(path), "a")
    synth.video(path, 6)
    with pytest.raises(SourceChangedError):
        next(read(table, decoder="pyav"))
    path.unlink()
    with pytest.raises(SourceChangedError):
        next(read(table))


def test_decord_on_demand_says_why_not(tmp_path: Path) -> None:
    table = probe(str(synth.video(tmp_path / "a.ts", 5)), "a")
    with pytest.raises(DecodeError, match="container mpegts"):
        read(table, decoder="decord")


def test_without_decord_pyav_does_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decode_segments.has_decord", lambda: False)
    table = probe(str(synth.video(tmp_path / "a.mp4", 5)), "a")
    reader = read(table)
    assert len(list(reader)) == 5
    assert reader.report().frames_by_decoder == {"pyav": 5}
    with pytest.raises(DecodeError, match="not installed"):
        read(table, decoder="decord")


@pytest.mark.skipif(not has_decord(), reason="decord has no wheel for this machine")
def test_decord_losing_a_picture_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decord that drops a picture repeats its last one: the piece goes to PyAV before any of it is delivered."""
    from pipeline import decode_decord

    real = decode_decord.decord.VideoReader

    class Lossy(real):  # type: ignore[misc, valid-type]
        def next(self) -> object:
            if not hasattr(self, "shown"):
                self.shown = [real.next(self) for _ in range(len(self))]
                del self.shown[4]
                self.shown.append(self.shown[-1])
            return self.shown.pop(0)

    monkeypatch.setattr(decode_decord.decord, "VideoReader", Lossy)
    table = probe(str(synth.video(tmp_path / "a.mp4", 12)), "a")
    reader = read(table)
    assert [synth.read_barcode(frame.image) for frame in reader] == list(range(12))
    report = reader.report()
    assert report.frames_by_decoder == {"pyav": 12}
    assert "lost a picture" in report.message


def test_a_colon_in_the_name(tmp_path: Path) -> None:
    path = synth.video(tmp_path / "a.mp4", 3).rename(tmp_path / "http: 10:30 %03d [x].mp4")
    assert len(probe(str(path), "x")) == 3
    assert len(probe(f"file://{path}".replace(" ", "%20").replace("%03d", "%2503d"), "x")) == 3


def test_redact() -> None:
    assert redact("/a b/c.mp4") == "/a b/c.mp4"
    assert redact("rtsp://me:pw@cam:554/1") == "rtsp://***@cam:554/1"
    signed = redact("https://h/v.mp4?X-Amz-Signature=abc&part=2&access_token=def")
    assert signed == "https://h/v.mp4?X-Amz-Signature=***&part=2&access_token=***"
