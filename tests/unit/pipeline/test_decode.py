"""The decoding matrix: every kind of file gives the right frame for every index, by every way of reading it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import FrameTable, has_decord, probe, read
from pipeline.types import Frame
from tests import synth

SMALL = 16
"""Frames per segment here: several segments in a clip of sixty."""


@pytest.mark.parametrize("kind", synth.MATRIX, ids=lambda kind: kind.name)
def test_right_frame_for_every_index(kind: synth.Kind, tmp_path: Path) -> None:
    if not synth.has_encoder(kind.encoder):
        pytest.skip(f"this PyAV cannot encode {kind.encoder}")
    path, numbers = kind.make(tmp_path)
    table = probe(str(path), "clip")

    reader = read(table, decoder="pyav")
    whole = list(reader)
    assert [synth.read_barcode(frame.image) for frame in whole] == numbers
    assert [frame.index for frame in whole] == list(range(len(numbers)))
    assert all(frame.image.shape[:2] == frame.source_size == table.source_size for frame in whole)
    assert np.all(np.diff(table.pts) > 0)
    assert [frame.pts_s for frame in whole] == table.pts_s[: len(whole)].tolist()
    report = reader.report()
    assert (report.status, report.num_decoded) == (kind.status, len(numbers))
    assert (report.num_expected > report.num_decoded) or table.damage or kind.status == "done"

    assert table.decord_ok == kind.by_decord, table.decord_reason
    reader = read(table, segment_frames=SMALL)
    _same(list(reader), whole)
    assert reader.report().status == kind.status
    if kind.by_decord and has_decord() and kind.name not in ("h264_one_group", "h264_intra_refresh"):
        assert reader.report().frames_by_decoder["decord"] >= 0.6 * len(numbers), reader.report().message
    _same_by_pieces(table, whole)


def _same(frames: list[Frame], want: list[Frame]) -> None:
    assert [frame.index for frame in frames] == [frame.index for frame in want]
    worst = [int(np.abs(a.image.astype(np.int16) - b.image).max()) for a, b in zip(frames, want, strict=True)]
    assert max(worst, default=0) == 0, f"pixels differ: {worst}"


def _same_by_pieces(table: FrameTable, whole: list[Frame]) -> None:
    """Short reads from anywhere give what the pass from the start gave."""
    rng = np.random.default_rng(len(whole))
    for start in sorted({0, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 3).tolist()}):
        stop = min(start + 3, len(whole))
        for decoder in ("pyav", "auto"):
            _same(list(read(table, start, stop, decoder=decoder)), whole[start:stop])
    _same(list(read(table, 1, len(whole), stride=7, segment_frames=SMALL)), whole[1::7])


@pytest.mark.skipif(not has_decord(), reason="decord has no wheel for this machine")
def test_decord_takes_long_groups_when_told_to(tmp_path: Path) -> None:
    path = synth.video(tmp_path / "a.mp4", how=synth._x264(gop=250))
    table = probe(str(path), "a")
    reader = read(table, 5, 57, decoder="decord", segment_frames=SMALL)
    assert [synth.read_barcode(frame.image) for frame in reader] == list(range(5, 57))
    assert reader.report().frames_by_decoder == {"decord": 52}
    assert [synth.read_barcode(f.image) for f in read(table, 3, 60, stride=5, decoder="decord")] == list(
        range(3, 60, 5)
    )


def test_time_is_the_containers_and_exact(tmp_path: Path) -> None:
    how = synth.Encoding(options=synth.H264.options, fps=Fraction(30000, 1001))
    synth.encode(tmp_path / "a.mp4", synth.barcodes(30), how)
    table = probe(str(tmp_path / "a.mp4"), "a")
    assert table.info.fps == Fraction(30000, 1001)
    assert [Fraction(int(p)) * table.time_base for p in table.pts] == [Fraction(1001 * i, 30000) for i in range(30)]
    synth.remux(tmp_path / "a.mp4", tmp_path / "late.mkv", shift_s=100.0)
    late = probe(str(tmp_path / "late.mkv"), "late")
    np.testing.assert_allclose(late.pts_s, table.pts_s + 100, atol=0.0006)


def test_irregular_times_come_out_as_they_were_written(tmp_path: Path) -> None:
    pts = np.cumsum(np.random.default_rng(5).integers(700, 9000, 40))
    synth.encode(tmp_path / "vfr.mp4", synth.barcodes(40), synth.H264, pts.tolist())
    table = probe(str(tmp_path / "vfr.mp4"), "vfr")
    np.testing.assert_allclose(table.pts_s - table.pts_s[0], (pts - pts[0]) / 90_000, atol=1e-6)


def test_a_cut_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path, numbers = synth._truncated(".mp4")(tmp_path)
    table = probe(str(path), "half")
    reader = read(table)
    assert len(list(reader)) == len(numbers) == len(table)
    report = reader.report()
    assert (table.num_declared, report.num_expected, report.status) == (60, 60, "partial")
    assert report.message.startswith(f"{len(numbers)} of 60 frames")
    first_half = read(table, 0, 10)
    assert len(list(first_half)) == 10
    assert first_half.report().num_expected == 10


def test_the_plain_kinds_are_whole(tmp_path: Path) -> None:
    table = probe(str(synth.video(tmp_path / "a.mp4", 12)), "a")
    assert (table.num_missing, table.damage, table.num_declared, len(table)) == (0, "", 12, 12)
    assert table.info.duration_s == pytest.approx(0.4)
    assert table.keyframes.tolist() == [int(table.pts[0])]
