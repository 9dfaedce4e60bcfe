"""The table of formats, the reports, and what stays bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.results import FrameResult
from pipeline.sinks import FORMATS, export_run, import_file
from pipeline.store import Manifest, RunWriter, VideoEntry, open_run
from tests.runs import SEEDED_RUNS, VideoSpec, make_run, synthetic_frames

WITHOUT_VIDEO = [n for n, info in FORMATS.items() if not info.needs_video and info.extra != "rerun"]


def test_the_table_names_a_class_and_a_line_for_each() -> None:
    code = (
        "import sys\n"
        "from pipeline.sinks import FORMATS\n"
        "assert not {m for m in sys.modules if m.startswith('pipeline.sinks.')}\n"
        "assert not {'numpy', 'pyarrow', 'av', 'supervision', 'torch'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    for info in FORMATS.values():
        module, _, name = info.target.partition(":")
        assert module.startswith("pipeline.sinks.") and name
        assert info.description and "\n" not in info.description + info.loss


@pytest.mark.parametrize(("kind", "seed"), [c for c in SEEDED_RUNS if c[1] == 0 and c[0] != "many_ids"])
def test_every_format_takes_every_kind_of_run(tmp_path: Path, kind: str, seed: int) -> None:
    run = make_run(tmp_path / "run", kind, seed)
    reports = run.export(WITHOUT_VIDEO, tmp_path / "out")
    assert [r.format for r in reports] == WITHOUT_VIDEO
    for report in reports:
        assert report.num_files == len(report.files) > 0
        assert all(f.is_file() and f.is_relative_to(tmp_path / "out" / report.format) for f in report.files)
        assert {f for f in (tmp_path / "out" / report.format).rglob("*") if f.is_file()} == set(report.files)
        if kind == "several_videos":
            assert "broken failed when it was tracked and is left out" in report.notes
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*WITHOUT_VIDEO, "export.json"])
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert {n: tuple(said[n]["notes"]) for n in said} == {r.format: r.notes for r in reports}


def test_exporting_again_replaces_and_is_the_same_to_the_byte(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gaps", 0)
    files = [f for r in run.export(WITHOUT_VIDEO, tmp_path / "out") for f in r.files]
    before = {f: f.read_bytes() for f in files}
    (tmp_path / "out" / "coco" / "stale.txt").write_text("x")
    run.export("coco,csv", tmp_path / "out")
    run.export([n for n in WITHOUT_VIDEO if n not in ("coco", "csv")], tmp_path / "out")
    assert {f: f.read_bytes() for f in files} == before
    assert not (tmp_path / "out" / "coco" / "stale.txt").exists()
    assert set(json.loads((tmp_path / "out" / "export.json").read_text())) == set(WITHOUT_VIDEO)


def test_more_than_255_objects_make_several_davis_sequences(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "many_ids", 0)
    (report,) = export_run(run, ["davis"], tmp_path / "out")
    assert run.videos[0].num_masklets > 254
    assert sorted(p.name for p in (tmp_path / "out" / "davis").iterdir()) == ["clip", "clip.2", "objects.json"]
    assert any("254 objects" in note for note in report.notes)


def test_import_overwrites_a_run_only_when_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain", 0)
    export_run(run, ["coco"], tmp_path / "out")
    other = make_run(tmp_path / "other", "gaps", 1)
    import_file(tmp_path / "out" / "coco", "coco", other.folder, overwrite=True)
    assert open_run(other.folder).table().equals(run.table())


def test_foreign_ids_are_given_anew_in_order_of_appearance(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").write_text("3,900,1,1,5,5,0.5\n1,70000000000,1,1,5,5,1\n3,4,2,2,5,5,1\n")
    import_file(tmp_path / "clip.txt", "mot", tmp_path / "run", text="goose", size=(20, 30))
    run = open_run(tmp_path / "run")
    assert run.table(columns=["frame", "masklet_id", "prompt", "score"]).to_pylist() == [
        {"frame": 0, "masklet_id": 1, "prompt": "goose", "score": 1.0},
        {"frame": 2, "masklet_id": 2, "prompt": "goose", "score": 1.0},
        {"frame": 2, "masklet_id": 3, "prompt": "goose", "score": 0.5},
    ]
    assert (run.videos[0].width, run.videos[0].height, run.videos[0].num_frames) == (20, 30, 3)


def test_ground_truth_of_mot16_names_classes_and_ignored_rows(tmp_path: Path) -> None:
    folder = tmp_path / "MOT16-99"
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text("1,1,0,0,5,5,1,1,1\n1,2,9,0,5,5,0,8,0.5\n")
    (folder / "seqinfo.ini").write_text("[Sequence]\nimWidth=64\nimHeight=48\nseqLength=5\nframeRate=25\n")
    import_file(tmp_path, "mot", tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert (run.videos[0].video_id, run.videos[0].fps, run.videos[0].num_frames) == ("MOT16-99", "25/1", 5)
    rows = run.table(columns=["prompt", "score"]).to_pylist()
    assert rows == [{"prompt": "pedestrian", "score": 1.0}, {"prompt": "distractor", "score": 0.0}]


def test_kitti_mots_counts_frames_from_0_and_has_an_ignored_region(tmp_path: Path) -> None:
    spec = VideoSpec(num_frames=1, num_masklets=2)
    (frame,) = synthetic_frames(spec, 0)
    counts = [rle.counts.decode() for rle in frame.rles]
    (tmp_path / "0001.txt").write_text(f"0 1001 1 48 64 {counts[0]}\n0 10000 10 48 64 {counts[1]}\n")
    report = import_file(tmp_path / "0001.txt", "mots", tmp_path / "run")
    assert "frames count from 0, as in KITTI-MOTS" in report.notes
    rows = open_run(tmp_path / "run").table(columns=["frame", "prompt", "score"]).to_pylist()
    assert rows == [
        {"frame": 0, "prompt": "car", "score": 1.0},
        {"frame": 0, "prompt": "ignored region", "score": 0.0},
    ]


def long_run(folder: Path, num_frames: int) -> None:
    """Ten masklets on every frame of a video."""
    size = (120, 160)
    rng = np.random.default_rng(0)
    masks = np.zeros((10, *size), bool)
    for mask in masks:
        y, x = rng.integers(0, 80), rng.integers(0, 100)
        mask[y : y + 40, x : x + 60] = rng.random((40, 60)) < 0.6
    rles, boxes = mask_ops.encode(masks), mask_ops.boxes(masks)
    writer = RunWriter.create(folder, Manifest("0.0", {"id": "synthetic"}, ["dot"], [], "none"), "{}\n")
    ids, score = np.arange(1, 11, dtype=np.int32), np.full(10, 0.5, np.float32)
    with writer.video("long", rows_per_part=2_000, frames_per_part=200) as out:
        for t in range(num_frames):
            out.write(FrameResult("long", t, t / 24, size, ids, ("dot",) * 10, score, boxes, rles))
    writer.end_video(VideoEntry("long", "long.mp4", "done", size[1], size[0], "24/1", num_frames, num_frames, 10))


def test_a_masklet_of_more_than_255_frames(tmp_path: Path) -> None:
    """pycocotools' ``area`` takes at most 255 masks a call under NumPy 2."""
    long_run(tmp_path / "run", 300)
    run = open_run(tmp_path / "run")
    export_run(run, ["ytvis", "saco", "parquet"], tmp_path / "out")
    import_file(tmp_path / "out" / "ytvis", "ytvis", tmp_path / "back")
    assert open_run(tmp_path / "back").table().equals(run.table())
    (first, *_) = run.masklets()
    assert mask_ops.areas(first.masks).tolist() == mask_ops.decode(first.masks).sum((1, 2)).tolist()


PEAK = """
import resource, sys
from pathlib import Path
from pipeline.sinks import export_run
from pipeline.store import open_run
export_run(open_run(sys.argv[1]), sys.argv[3].split(","), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Five times the rows: a format that held them would need far more than the slack that is allowed here."""
    peaks_mb = []
    for num_frames in (300, 1500):
        long_run(tmp_path / f"run{num_frames}", num_frames)
        arguments = [str(tmp_path / f"run{num_frames}"), str(tmp_path / f"out{num_frames}"), "coco,csv"]
        done = subprocess.run([sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True)
        peaks_mb.append(int(done.stdout) / 1024)
    written_mb = (tmp_path / "out1500" / "coco" / "annotations.json").stat().st_size / 1e6
    assert written_mb > 20, "the masks must be heavy for this to show anything"
    assert peaks_mb[1] - peaks_mb[0] < 15, peaks_mb
