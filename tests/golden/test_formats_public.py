"""Importing public data as it is published, and handing it on. Needs ``MASKLET_TEST_DATA``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.sinks import export_run, import_file
from pipeline.sinks.jsonio import read_document
from pipeline.sinks.segmentation import rle_of
from pipeline.store import open_run

DATA = Path(os.environ.get("MASKLET_TEST_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="MASKLET_TEST_DATA is not set")


def test_mot15_ground_truth(tmp_path: Path) -> None:
    import_file(DATA / "mot15", "mot", tmp_path / "run", text="pedestrian")
    run = open_run(tmp_path / "run")
    assert {v.video_id: (v.width, v.height, v.num_frames, v.num_masklets) for v in run.videos} == {
        "KITTI-17": (1224, 370, 145, 9),
        "TUD-Campus": (640, 480, 71, 8),
        "TUD-Stadtmitte": (640, 480, 179, 10),
    }
    text = (DATA / "mot15" / "TUD-Campus" / "gt" / "gt.txt").read_text().splitlines()
    boxes = sorted(tuple(map(float, line.split(",")[:1] + line.split(",")[2:6])) for line in text)
    ours = sorted(
        (f.index + 1.0, x1, y1, x2 - x1, y2 - y1)
        for f in run.frames("TUD-Campus")
        for x1, y1, x2, y2 in f.xyxy.tolist()
    )
    assert np.allclose(ours, boxes, atol=1e-3)
    export_run(run, ["mot"], tmp_path / "out")
    import_file(tmp_path / "out" / "mot", "mot", tmp_path / "back")
    a, b = (r.table(columns=["video_id", "frame", "masklet_id"]) for r in (run, open_run(tmp_path / "back")))
    assert a.equals(b)


def test_davis_2016_annotations_keep_every_pixel(tmp_path: Path) -> None:
    import_file(DATA / "davis" / "Annotations" / "blackswan", "davis", tmp_path / "run", text="swan")
    run = open_run(tmp_path / "run")
    files = sorted((DATA / "davis" / "Annotations" / "blackswan").glob("*.png"))
    assert run.videos[0].num_frames == len(files)
    frames = {f.index: f for f in run.frames("blackswan")}
    for index, file in enumerate(files[:10]):
        assert np.array_equal(frames[index].masks().any(0), np.asarray(Image.open(file)) > 127)
    (report,) = export_run(run, ["cvat"], tmp_path / "out")
    import_file(tmp_path / "out" / "cvat", "cvat", tmp_path / "back")
    for ours, theirs in zip(run.frames("blackswan"), open_run(tmp_path / "back").frames("blackswan"), strict=True):
        iou = coco_mask.iou([r.to_coco() for r in ours.rles], [r.to_coco() for r in theirs.rles], [0])
        assert iou[0, 0] > 0.97, "a real outline loses little"
    assert "IoU" in report.notes[0]


def test_sav_example_masks_pass_the_check() -> None:
    document = read_document(DATA / "sav_000001" / "sav_000001_manual.json")
    size = (int(document["video_height"]), int(document["video_width"]))
    masks = [rle_of(m, size, "sav") for row in document["masklet"] for m in row]
    assert len(masks) == 605 and sum(m is None for m in masks) == 125
