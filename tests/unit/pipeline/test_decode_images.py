"""A folder of pictures is a video; and frames are resized as the SAM3 processor does it."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.decode import probe, read, resize
from pipeline.errors import NoVideoError
from tests import synth


def _write(path: Path, index: int, size: tuple[int, int] = (synth.HEIGHT, synth.WIDTH)) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(synth.barcode(index, size), cv2.COLOR_RGB2BGR))


def test_natural_order_exact_pixels_and_times(tmp_path: Path) -> None:
    for index in range(12):
        _write(tmp_path / f"{index}.png", index)
    (tmp_path / "notes.txt").write_text("not a picture")
    table = probe(str(tmp_path), "frames")
    assert (len(table), table.container, table.info.fps, table.decord_ok) == (12, "images", Fraction(24), False)
    assert table.pts_s.tolist() == [index / 24 for index in range(12)]
    reader = read(table, 1, stride=2)
    for frame in reader:
        np.testing.assert_array_equal(frame.image, synth.barcode(frame.index))
    assert reader.report().frames_by_decoder == {"images": 6}
    assert probe(str(tmp_path), "frames", image_fps=Fraction(10)).pts_s[1] == 0.1


def test_a_broken_picture_leaves_a_gap_and_another_size_is_scaled(tmp_path: Path) -> None:
    for index in range(6):
        _write(tmp_path / f"{index}.png", index, (96, 160) if index == 3 else (192, 320))
    (tmp_path / "2.png").write_bytes(b"broken")
    reader = read(probe(str(tmp_path), "frames"))
    frames = list(reader)
    assert [(f.index, synth.read_barcode(f.image), f.image.shape[:2]) for f in frames] == [
        (index, index, (192, 320)) for index in (0, 1, 3, 4, 5)
    ]
    assert (reader.report().status, reader.report().num_decoded, reader.report().num_expected) == ("partial", 5, 6)


def test_no_readable_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(NoVideoError, match="none of its pictures"):
        probe(str(tmp_path), "frames")


@pytest.mark.parametrize(
    ("source", "target"),
    [((192, 320), (112, 112)), ((54, 97), (112, 112)), ((358, 642), (224, 336)), ((720, 1280), (1008, 1008))],
)
def test_resize_equals_the_processors(source: tuple[int, int], target: tuple[int, int]) -> None:
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    image = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    processor = Sam3ImageProcessor(size={"height": target[0], "width": target[1]}, do_rescale=False, do_normalize=False)
    want = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(resize(image, target), want)


def test_frames_come_resized_with_the_sources_size(tmp_path: Path) -> None:
    table = probe(str(synth.video(tmp_path / "a.mp4", 6)), "a")
    full = list(read(table, decoder="pyav"))
    for small, frame in zip(read(table, size=(112, 112)), full, strict=True):
        np.testing.assert_array_equal(small.image, resize(frame.image, (112, 112)))
        assert small.source_size == (192, 320)


def test_importing_decode_loads_no_torch() -> None:
    import subprocess

    code = (
        "import sys, pipeline.decode, workers.decode_child; sys.exit('torch' in sys.modules or 'decord' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
