"""Cutouts against the pixels they were cut from."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import FormatError, SourceError
from pipeline.sinks import export_run
from pipeline.store import Run, open_run
from tests.runs import VideoSpec, write_run

SIZE = (90, 121)


def source(path: Path, num_frames: int, size: tuple[int, int] = SIZE) -> list[np.ndarray[Any, Any]]:
    """A lossless video of smooth colours that drift; returns its RGB frames."""
    height, width = size
    ys, xs = np.mgrid[:height, :width]
    frames = [
        np.stack([(xs * 2 + 5 * t) % 256, (ys * 2 + 3 * t) % 256, (xs + ys + 7 * t) % 256], -1).astype(np.uint8)
        for t in range(num_frames)
    ]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return frames


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Masklets with gaps over a real file."""
    made = write_run(tmp_path / "run", [VideoSpec(size=SIZE, num_frames=14, num_masklets=4, gaps=True)], seed=5)
    manifest = (made.folder / "manifest.json").read_text().replace('"clip.mp4"', json.dumps(str(tmp_path / "clip.mkv")))
    (made.folder / "manifest.json").write_text(manifest)
    return open_run(made.folder)


def expected(run: Run, frames: list[np.ndarray[Any, Any]], about: dict[str, Any]) -> dict[int, np.ndarray[Any, Any]]:
    """RGBA by frame over the masklet's life."""
    x1, y1, x2, y2 = about["crop_xyxy"]
    out = {t: np.zeros((y2 - y1, x2 - x1, 4), np.uint8) for t in range(about["first_frame"], about["last_frame"] + 1)}
    for result in run.frames("clip"):
        for i in np.flatnonzero(result.masklet_id == about["masklet_id"]).tolist():
            out[result.index][..., :3] = frames[result.index][y1:y2, x1:x2]
            out[result.index][..., 3] = result.masks()[i, y1:y2, x1:x2] * 255
    return out


def test_png_cutouts_are_exact(tmp_path: Path, run: Run) -> None:
    frames = source(tmp_path / "clip.mkv", 14)
    export_run(run, ["cutout-png"], tmp_path / "out")
    folder = tmp_path / "out" / "cutout-png"
    described = json.loads((folder / "masklets.json").read_text())["clip"]
    assert [d["masklet_id"] for d in described] == list(range(1, run.videos[0].num_masklets + 1))
    for about in described:
        want = expected(run, frames, about)
        files = sorted((folder / "clip" / f"masklet-{about['masklet_id']:04d}").glob("*.png"))
        assert [int(f.stem) for f in files] == list(want)
        for file in files:
            got = np.asarray(Image.open(file))
            assert got.shape == want[int(file.stem)].shape
            assert np.array_equal(got[..., 3], want[int(file.stem)][..., 3])
            inside = got[..., 3] > 0
            # The decoder hands RGB on through one colour conversion.
            assert np.abs(got[inside].astype(int) - want[int(file.stem)][inside]).max(initial=0) <= 3
        tight = np.max([w[..., 3] for w in want.values()], axis=0) > 0
        assert tight.any(0)[[0, -1]].all() and tight.any(1)[[0, -1]].all(), "the crop is tight over the whole life"


def test_webm_cutouts_have_alpha_and_times(tmp_path: Path, run: Run) -> None:
    frames = source(tmp_path / "clip.mkv", 14)
    (report,) = export_run(run, ["cutout"], tmp_path / "out")
    assert report.num_files == run.videos[0].num_masklets + 1
    folder = tmp_path / "out" / "cutout"
    for about in json.loads((folder / "masklets.json").read_text())["clip"]:
        want = expected(run, frames, about)
        decoder: Any = av.CodecContext.create("libvpx-vp9", "r")
        with av.open(str(folder / "clip" / f"masklet-{about['masklet_id']:04d}.webm")) as container:
            stream = container.streams.video[0]
            assert stream.metadata.get("alpha_mode") == "1"
            packets = [p for p in container.demux(stream) if p.size]
            times_s = [float(p.pts * stream.time_base) for p in packets]
            pictures = [f for p in [*packets, None] for f in decoder.decode(p)]
        assert len(pictures) == len(want)
        assert np.allclose(times_s, [i * 1001 / 30000 for i in range(len(want))], atol=2e-3)
        for picture, truth in zip(pictures, want.values(), strict=True):
            # The alpha plane itself: libswscale's conversion to RGBA misplaces alpha at some sizes.
            plane = picture.planes[3]
            alpha = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: truth.shape[0], : truth.shape[1]]
            inside, expected_inside = alpha > 127, truth[..., 3] > 0
            union = (inside | expected_inside).sum()
            assert not union or (inside & expected_inside).sum() / union > 0.97


def test_a_video_that_is_another_or_ends_early(tmp_path: Path, run: Run) -> None:
    source(tmp_path / "clip.mkv", 14, (50, 60))
    with pytest.raises(FormatError, match="the video is 60 x 50, the run 121 x 90"):
        export_run(run, ["cutout-png"], tmp_path / "out")
    source(tmp_path / "clip.mkv", 3)
    with pytest.raises(SourceError, match="ends before its masklets do"):
        export_run(run, ["cutout-png"], tmp_path / "out")
    assert not (tmp_path / "out" / "cutout-png").exists()


def test_a_strided_run_does_not_flicker(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run", [VideoSpec(size=SIZE, num_frames=15, num_masklets=2, stride=3)], seed=1)
    manifest = (made.folder / "manifest.json").read_text().replace('"clip.mp4"', json.dumps(str(tmp_path / "clip.mkv")))
    (made.folder / "manifest.json").write_text(manifest)
    source(tmp_path / "clip.mkv", 15)
    export_run(open_run(made.folder), ["cutout-png"], tmp_path / "out")
    for folder in (tmp_path / "out" / "cutout-png" / "clip").iterdir():
        assert all(np.asarray(Image.open(f))[..., 3].any() for f in folder.glob("*.png"))
