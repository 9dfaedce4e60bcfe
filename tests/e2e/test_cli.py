"""The commands as a user types them: real videos, the tiny model, exit codes and one-line errors."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from pipeline import cli, open_run
from tests.e2e.clips import write_clip


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def masklet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["masklet", *(str(a) for a in args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "shapes.mp4", num_frames=24)


def test_track_writes_a_run_that_outside_readers_open(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = masklet("track", clip, "--text", "red circle", "--text", "blue square", "-o", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["counts"]["frames"] == 24
    assert summary["masklets_by_phrase"]["red circle"] == 1
    rows = pq.read_table(tmp_path / "run" / "masklets").to_pylist()
    assert rows
    for row in rows[:10]:
        mask = coco_mask.decode({"size": row["rle"]["size"], "counts": row["rle"]["counts"]})
        assert mask.shape == (180, 320)
        assert mask.sum() == row["area_px"]
        ys, xs = np.nonzero(mask)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (row["x1"], row["y1"], row["x2"], row["y2"])
    entry = open_run(tmp_path / "run").video()
    assert (entry.status, entry.num_frames, entry.width, entry.height, entry.fps) == ("done", 24, 320, 180, "10/1")
    assert sum(entry.decoders.values()) == 24


def test_a_phrase_that_matches_nothing_leaves_an_empty_valid_run(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = masklet("track", clip, "--text", "zebra", "-o", tmp_path / "run")
    assert done.code == 0
    assert len(pq.read_table(tmp_path / "run" / "masklets")) == 0
    assert open_run(tmp_path / "run").video().num_masklets == 0


def test_the_written_config_repeats_the_run(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert masklet("track", clip, "--text", "red circle", "--stride", 2, "-o", tmp_path / "a").code == 0
    assert masklet("track", "--config", tmp_path / "a" / "config.yaml", "-o", tmp_path / "b").code == 0
    assert open_run(tmp_path / "a").table().equals(open_run(tmp_path / "b").table())


def test_a_bad_video_fails_alone_and_resuming_does_only_what_is_missing(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(clip.read_bytes())
    (folder / "bad.mp4").write_bytes(b"not a video at all")
    done = masklet("track", folder, "--text", "red circle", "-o", tmp_path / "run")
    assert done.code == 1
    assert {v.video_id: v.status for v in open_run(tmp_path / "run").videos} == {"good": "done", "bad": "failed"}
    part = open_run(tmp_path / "run").parts("good")[0]
    before = part.stat().st_mtime_ns
    (folder / "bad.mp4").write_bytes(clip.read_bytes())
    done = masklet("track", folder, "--text", "red circle", "-o", tmp_path / "run", "--resume")
    assert done.code == 0
    assert part.stat().st_mtime_ns == before
    assert {v.status for v in open_run(tmp_path / "run").videos} == {"done"}
    assert masklet("track", folder, "--text", "blue square", "-o", tmp_path / "run", "--resume").code == 2


def test_chunks_give_the_masklets_of_the_whole(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert masklet("track", clip, "--text", "red circle", "-o", tmp_path / "whole").code == 0
    cut = masklet("track", clip, "--text", "red circle", "--chunk", "1.2s", "--overlap", ".6s", "-o", tmp_path / "cut")
    assert cut.code == 0, cut.err
    whole, cut_run = open_run(tmp_path / "whole"), open_run(tmp_path / "cut")
    assert len(cut_run.video().chunks) > 1
    assert [m.masklet_id for m in cut_run.masklets()] == [m.masklet_id for m in whole.masklets()]
    assert cut_run.video().num_tracked == whole.video().num_tracked == 24
    assert cut_run.video().links


BAD_SOURCES = {
    "missing": None,
    "empty.mp4": b"",
    "zeros.mp4": b"\0" * 4096,
    "garbage.mp4": bytes(range(256)) * 64,
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_an_unreadable_source_is_one_line_and_exit_code_2(masklet, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    content = BAD_SOURCES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = masklet("track", tmp_path / name, "--text", "cat", "-o", tmp_path / "run")
    assert done.code == 2
    assert one_error(done)


def one_error(outcome: Outcome) -> str:
    """The only ``error:`` line; there is no traceback."""
    assert "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    return errors[0]


def test_usage_errors_name_the_way_out(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    cases: list[tuple[list[object], str]] = [
        ([clip, "-o", run], "--text"),
        ([clip, "--text", " ", "-o", run], "empty"),
        ([clip, "--text", "cat"], "-o RUN"),
        ([clip, "--text", "cat", "-o", run, "--device", "cuda:7"], "--device cpu"),
        ([clip, "--text", "cat", "-o", run, "--model", "no/such-model"], "--model tiny"),
        ([clip, "--text", "cat", "-o", run, "--model", tmp_path / "nowhere"], "--model tiny"),
        ([clip, "--text", "cat", "-o", run, "--model", "s0"], "SAM License"),
        ([clip, "--text", "cat", "-o", run, "--tracker", "deepsort"], "sam3_memory"),
        ([clip, "--text", "cat", "-o", run, "--set", "tracker.bogus=1"], "bogus"),
        ([clip, "--text", "cat", "-o", run, "--start", "20", "--stop", "10"], "no frames between"),
        ([clip, "--text", "cat", "-o", run, "--box", "0:1,2"], "FRAME:"),
        ([clip, "--text", "cat", "-o", run, "--workers", "4"], "--ray"),
        ([tmp_path, "--text", "cat", "-o", run], "no video"),
        ([clip, "--frobnicate"], "see masklet track --help"),
    ]
    for args, says in cases:
        done = masklet("track", *args)
        assert done.code == 2, (args, done.err)
        assert says in one_error(done), (args, done.err)
        assert not (run / "masklets").exists() or not list((run / "masklets").iterdir()), args


def test_words_that_the_tiny_model_does_not_know_are_named(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """And a run in which nothing could be read is not in the way of the next try."""
    asked = ["track", clip, "--text", "red circle", "--text", "red Dog", "-o", tmp_path / "run"]
    assert masklet(*asked, "--start", "900s").code == 2
    done = masklet(*asked, "--stop", 4, "--overlay")
    assert done.code == 0, done.err
    assert "phrase 'red Dog': this model does not know 'Dog'" in done.err
    assert "'red circle': this model" not in done.err
    assert f"overlay: {tmp_path / 'run' / 'overlay.mp4'}" in done.err.replace("\n", "")


def test_an_existing_run_is_refused(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert masklet("track", clip, "--text", "cat", "--stop", 4, "-o", tmp_path / "run").code == 0
    done = masklet("track", clip, "--text", "cat", "--stop", 4, "-o", tmp_path / "run")
    assert done.code == 2
    assert "--resume" in one_error(done)
    assert masklet("track", clip, "--text", "cat", "--stop", 4, "-o", tmp_path / "run", "--overwrite").code == 0


def test_a_long_phrase_is_cut_with_a_warning(masklet, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    phrase = " ".join(["red circle"] * 40)
    done = masklet("track", clip, "--text", phrase, "--stop", 2, "-o", tmp_path / "run")
    assert done.code == 0
    assert "red circle" in done.err
    assert "WARNING" in done.err


def test_config_doctor_and_help(masklet) -> None:  # type: ignore[no-untyped-def]
    assert json.loads(masklet("config", "--json").out)["model"]["name"] == "tiny"
    doctor = masklet("doctor", "--json")
    assert {c["name"] for c in json.loads(doctor.out)["checks"]} >= {"torch", "decode: PyAV", "weights: tiny"}
    counts = json.loads(masklet("doctor", "--models", "--json").out)["text_parameters"]
    assert counts == {"s0": 42_541_312, "s1": 63_528_192, "l": 123_800_320, "sam3": 353_724_672}
    for name in ("track", "demo", "render", "export", "import", "eval", "view", "prepare", "doctor", "config"):
        help_ = masklet(name, "--help")
        assert help_.code == 0
        assert "--json" in help_.out
    assert masklet("nope").code == 2
    assert masklet("track", "--nope").code == 2


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    import subprocess

    code = (
        "import sys, pipeline, pipeline.cli; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
