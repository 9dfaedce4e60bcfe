"""Outside readers take the files: each format is read by the library its users have, and compared with the run."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline import masks as mask_ops
from pipeline.results import FrameResult
from pipeline.sinks import export_run
from pipeline.sinks.davis import davis_palette
from pipeline.store import Run
from tests.runs import make_run

KINDS = pytest.mark.parametrize("kind", ["gaps", "overlaps", "empty", "single_frame", "several_videos", "odd_sizes"])


def exported(folder: Path, kind: str, name: str) -> tuple[Run, Path]:
    run = make_run(folder / "run", kind, 3)
    export_run(run, [name], folder / "out")
    return run, folder / "out" / name


def rows(run: Run) -> Iterator[tuple[FrameResult, int]]:
    """Every frame and row of it, in the run's order."""
    for entry in run.videos:
        if entry.status != "failed":
            for frame in run.frames(entry.video_id):
                for i in range(len(frame)):
                    yield frame, i


@KINDS
def test_pycocotools_reads_coco(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "coco")
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "annotations.json"))
    anns = coco.loadAnns(sorted(coco.getAnnIds()))
    expected = list(rows(run))
    assert len(anns) == len(expected)
    for ann, (frame, i) in zip(anns, expected, strict=True):
        assert np.array_equal(coco.annToMask(ann).astype(bool), frame.masks()[i])
        assert ann["area"] == frame.area_px()[i] == coco_mask.area(coco.annToRLE(ann))
        assert ann["bbox"] == coco_mask.toBbox(coco.annToRLE(ann)).tolist()
        assert coco.imgs[ann["image_id"]]["frame_id"] == frame.index
        assert coco.cats[ann["category_id"]]["name"] == frame.prompt[i]
    tracks = {(a["video_id"], a["masklet_id"]): a["track_id"] for a in anns}
    assert len(set(tracks.values())) == len(tracks), "track ids are unique over the file"
    assert len(coco.imgs) == sum(v.num_frames for v in run.videos if v.status != "failed")


def quiet(dataset: type, **config: object) -> Any:
    """A TrackEval dataset, without its prints."""
    with redirect_stdout(io.StringIO()):
        return dataset({"PRINT_CONFIG": False, "OUTPUT_FOLDER": None, **config})


def hota(dataset: Any, sequence: str, name: str) -> float:
    """TrackEval's HOTA of a sequence and class, averaged over its thresholds."""
    from trackeval.metrics import HOTA

    with redirect_stdout(io.StringIO()):
        raw = dataset.get_raw_seq_data("ours", sequence)
        data = dataset.get_preprocessed_seq_data(raw, name)
        return float(np.mean(HOTA().eval_sequence(data)["HOTA"]))


def as_truth(text: Path, target: Path, to_row: Any) -> None:
    """A result file rewritten as ground truth of its format."""
    target.parent.mkdir(parents=True)
    target.write_text("".join(to_row(line) for line in text.read_text().splitlines()))


@pytest.mark.parametrize("kind", ["gaps", "overlaps", "single_frame"])
def test_trackeval_reads_mot(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("trackeval.datasets")
    run, folder = exported(tmp_path, kind, "mot")
    for phrase, name in (("person", "person"), ("red car", "red_car")):
        count = sum(frame.prompt[i] == phrase for frame, i in rows(run))
        if not count:
            continue
        truth = tmp_path / "gt" / name / "clip" / "gt" / "gt.txt"
        as_truth(folder / name / "clip.txt", truth, lambda line: ",".join([*line.split(",")[:6], "1", "1", "1"]) + "\n")
        (tmp_path / "trackers" / name / "ours" / "data").mkdir(parents=True)
        (tmp_path / "trackers" / name / "ours" / "data" / "clip.txt").write_text(
            (folder / name / "clip.txt").read_text()
        )
        dataset = quiet(
            datasets.MotChallenge2DBox,
            GT_FOLDER=str(tmp_path / "gt" / name),
            TRACKERS_FOLDER=str(tmp_path / "trackers" / name),
            SKIP_SPLIT_FOL=True,
            DO_PREPROC=False,
            SEQ_INFO={"clip": run.videos[0].num_frames},
        )
        raw = dataset.get_raw_seq_data("ours", "clip")
        assert sum(len(ids) for ids in raw["tracker_ids"]) == count
        assert hota(dataset, "clip", "pedestrian") == pytest.approx(1)


@pytest.mark.parametrize("kind", ["gaps", "overlaps", "single_frame"])
def test_trackeval_reads_mots(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("trackeval.datasets")
    run, folder = exported(tmp_path, kind, "mots")
    text = (folder / "clip.txt").read_text()
    for path in (tmp_path / "gt" / "clip" / "gt" / "gt.txt", tmp_path / "trackers" / "ours" / "data" / "clip.txt"):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    dataset = quiet(
        datasets.MOTSChallenge,
        GT_FOLDER=str(tmp_path / "gt"),
        TRACKERS_FOLDER=str(tmp_path / "trackers"),
        SKIP_SPLIT_FOL=True,
        SEQ_INFO={"clip": run.videos[0].num_frames},
    )
    raw = dataset.get_raw_seq_data("ours", "clip")
    assert sum(len(ids) for ids in raw["tracker_ids"]) == len(text.splitlines()) > 0
    if any(line.split()[2] == "2" for line in text.splitlines()):
        assert hota(dataset, "clip", "pedestrian") == pytest.approx(1)


@pytest.mark.parametrize("kind", ["gaps", "overlaps", "single_frame"])
def test_trackeval_reads_davis(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("trackeval.datasets")
    run, folder = exported(tmp_path, kind, "davis")
    frames = run.videos[0].num_frames
    (tmp_path / "trackers" / "ours").mkdir(parents=True)
    (tmp_path / "trackers" / "ours" / "data").symlink_to(folder)
    dataset = quiet(
        datasets.DAVIS,
        GT_FOLDER=str(folder),
        TRACKERS_FOLDER=str(tmp_path / "trackers"),
        SEQ_INFO={"clip": frames},
    )
    assert hota(dataset, "clip", "general") == pytest.approx(1)


@pytest.mark.parametrize("kind", ["gaps", "overlaps", "several_videos"])
def test_trackeval_reads_youtube_vis(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("trackeval.datasets")
    run, folder = exported(tmp_path, kind, "ytvis")
    truth = tmp_path / "gt" / "youtube_vis_train" / "gt.json"
    results = tmp_path / "trackers" / "youtube_vis_train" / "ours" / "data" / "r.json"
    for source, target in (("annotations.json", truth), ("results.json", results)):
        target.parent.mkdir(parents=True)
        target.write_text((folder / source).read_text())
    dataset = quiet(
        datasets.YouTubeVIS,
        GT_FOLDER=f"{tmp_path}/gt/",
        TRACKERS_FOLDER=f"{tmp_path}/trackers/",
        SPLIT_TO_EVAL="train",
    )
    seen = 0
    for video_id in dataset.seq_list:
        for phrase in dataset.class_list:
            present = {int(f.masklet_id[i]) for f, i in rows(run) if f.video_id == video_id and f.prompt[i] == phrase}
            if present:
                seen += len(present)
                assert hota(dataset, video_id, phrase) == pytest.approx(1)
    assert seen == sum(v.num_masklets for v in run.videos) > 0


def test_trackeval_reads_burst(tmp_path: Path) -> None:
    datasets = pytest.importorskip("trackeval.datasets")
    run, folder = exported(tmp_path, "gaps", "burst")
    (tmp_path / "trackers" / "ours" / "data").mkdir(parents=True)
    (tmp_path / "trackers" / "ours" / "data" / "r.json").write_text((folder / "masklets.json").read_text())
    dataset = quiet(datasets.BURST, GT_FOLDER=str(folder), TRACKERS_FOLDER=str(tmp_path / "trackers"))
    (sequence,) = dataset.seq_list
    raw = dataset.get_raw_seq_data("ours", sequence)
    counts = Counter(f.index for f, _ in rows(run))
    # TrackEval numbers the frames that have annotations; the others follow, empty.
    assert [len(ids) for ids in raw["tracker_ids"]] == [
        *(counts[t] for t in sorted(counts)),
        *([0] * (run.videos[0].num_frames - len(counts))),
    ]
    assert all(hota(dataset, sequence, name) == pytest.approx(1) for name in dataset.class_list)


@KINDS
def test_davis_pictures_are_indexed_with_the_palette(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "davis")
    for entry in run.videos:
        if entry.status != "failed":
            files = sorted((folder / entry.video_id).glob("*.png"))
            assert [f.stem for f in files] == [f"{i:05d}" for i in range(entry.num_frames)]
            for file in files:
                with Image.open(file) as image:
                    assert image.mode == "P" and image.size == (entry.width, entry.height)
                    palette = image.getpalette() or []
                    assert palette == davis_palette()[: len(palette)]
    assert davis_palette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@KINDS
def test_supervision_json_rebuilds_detections(tmp_path: Path, kind: str) -> None:
    sv = pytest.importorskip("supervision")
    run, folder = exported(tmp_path, kind, "supervision")
    for entry in run.videos:
        if entry.status == "failed":
            continue
        raw = json.loads((folder / f"{entry.video_id}.json").read_text())
        by_frame = [(f, [r for r in raw if r["frame_index"] == f.index]) for f in run.frames(entry.video_id) if len(f)]
        assert sum(len(found) for _, found in by_frame) == len(raw)
        for frame, found in by_frame:
            ours = frame.to_supervision()
            theirs = sv.Detections(
                xyxy=np.array([[r[k] for k in ("x_min", "y_min", "x_max", "y_max")] for r in found], np.float32),
                mask=np.stack([coco_mask.decode(r["rle"]).astype(bool) for r in found]),
                confidence=np.array([r["confidence"] for r in found], np.float32),
                tracker_id=np.array([r["tracker_id"] for r in found], int),
                data={"prompt": np.array([r["prompt"] for r in found], dtype=object)},
            )
            assert ours == theirs


@KINDS
def test_csv_and_jsonl_hold_every_column(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "csv")
    with open(folder / "masklets.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    expected = run.table().to_pylist()
    assert len(table) == len(expected)
    for got, want in zip(table, expected, strict=True):
        assert (got["video_id"], int(got["frame"]), int(got["masklet_id"]), got["prompt"]) == (
            want["video_id"],
            want["frame"],
            want["masklet_id"],
            want["prompt"],
        )
        assert float(got["pts_s"]) == want["pts_s"] and np.float32(got["score"]) == np.float32(want["score"])
        assert [float(got[k]) for k in ("x1", "y1", "x2", "y2")] == [want[k] for k in ("x1", "y1", "x2", "y2")]
        assert got["rle_counts"].encode() == want["rle"]["counts"] and int(got["area_px"]) == want["area_px"]

    export_run(run, ["jsonl"], tmp_path / "out")
    objects = []
    for entry in run.videos:
        if entry.status != "failed":
            lines = (tmp_path / "out" / "jsonl" / f"{entry.video_id}.jsonl").read_bytes().splitlines()
            head, *frames = map(json.loads, lines)
            assert (head["type"], head["schema"], head["fps"]) == ("header", 1, entry.fps)
            objects += [(entry.video_id, f["frame"], o) for f in frames for o in f["objects"]]
    assert [(v, f, o["masklet_id"], o["rle"]["counts"].encode()) for v, f, o in objects] == [
        (w["video_id"], w["frame"], w["masklet_id"], w["rle"]["counts"]) for w in expected
    ]


@KINDS
def test_parquet_is_flat_and_sorted_by_masklet(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "parquet")
    table = pq.read_table(folder / "masklets.parquet")
    assert not any(str(f.type).startswith(("struct", "list")) for f in table.schema)
    videos = json.loads(table.schema.metadata[b"videos"])
    assert {k: v["num_frames"] for k, v in videos.items()} == {
        v.video_id: v.num_frames for v in run.videos if v.status != "failed"
    }
    order = {v: i for i, v in enumerate(videos)}
    keys = [(order[r["video_id"]], r["masklet_id"], r["frame"]) for r in table.to_pylist()]
    assert keys == sorted(keys)
    back = table.sort_by([(k, "ascending") for k in ("video_id", "frame", "masklet_id")])
    shared = [c for c in run.table().column_names if c != "rle"]
    assert back.select(shared).equals(run.table().select(shared))
    assert back["rle_counts"].to_pylist() == [r["counts"] for r in run.table()["rle"].to_pylist()]


def test_pandas_and_duckdb_read_the_parquet(tmp_path: Path) -> None:
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    run, folder = exported(tmp_path, "gaps", "parquet")
    path = folder / "masklets.parquet"
    assert pandas.read_parquet(path)["area_px"].sum() == sum(run.table()["area_px"].to_pylist())
    ((count, longest),) = duckdb.sql(f"select count(*), max(octet_length(rle_counts)) from '{path}'").fetchall()
    assert count == len(run.table())
    assert longest == max(len(r["counts"]) for r in run.table()["rle"].to_pylist())


@KINDS
def test_yolo_labels_keep_ultralytics_rules(tmp_path: Path, kind: str) -> None:
    """Five or more even fields, numbers in 0..1, classes of data.yaml; the side file names each line's masklet."""
    run, folder = exported(tmp_path, kind, "yolo")
    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    with open(folder / "tracks.csv", encoding="utf-8", newline="") as file:
        tracks = list(csv.DictReader(file))
    expected = list(rows(run))
    assert len(tracks) == len(expected)
    for track, (frame, i) in zip(tracks, expected, strict=True):
        assert track["file"] == f"labels/train/{frame.video_id}/{frame.index:05d}.txt"
        label, *points = (folder / track["file"]).read_text().splitlines()[int(track["line"]) - 1].split()
        numbers = np.array(points, float)
        assert len(numbers) >= 6 and len(numbers) % 2 == 0 and numbers.min() >= 0 and numbers.max() <= 1
        assert names[int(label)] == frame.prompt[i] and int(track["masklet_id"]) == frame.masklet_id[i]
        height, width = frame.source_size
        ring = (numbers.reshape(-1, 2) * (width, height)).reshape(1, -1).tolist()
        filled = mask_ops.RLE((height, width), coco_mask.frPyObjects(ring, height, width)[0]["counts"])
        assert mask_ops.rle_iou([filled], [frame.rles[i]])[0, 0] >= 0.9


@KINDS
def test_geojson_polygons_fill_to_the_masks(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "geojson")
    features = [
        f
        for v in run.videos
        if v.status != "failed"
        for f in json.loads((folder / f"{v.video_id}.geojson").read_text())["features"]
    ]
    expected = list(rows(run))
    assert len(features) == len(expected)
    for feature, (frame, i) in zip(features, expected, strict=True):
        assert feature["properties"]["masklet_id"] == frame.masklet_id[i]
        assert feature["geometry"]["type"] == "MultiPolygon"
        mask = np.zeros(frame.source_size, bool)
        for polygon in feature["geometry"]["coordinates"]:
            for number, ring in enumerate(polygon):
                assert ring[0] == ring[-1] and len(ring) >= 4
                x, y = np.array(ring).T
                area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
                assert (area > 0) == (number == 0), "outer rings and holes run in opposite directions"
                flat = [np.array(ring[:-1], float).reshape(-1).tolist()]
                mask ^= coco_mask.decode(coco_mask.frPyObjects(flat, *frame.source_size))[:, :, 0].astype(bool)
        assert mask_ops.rle_iou(mask_ops.encode(mask[None]), [frame.rles[i]])[0, 0] >= 0.9


@KINDS
def test_sav_rows_are_frames_and_absent_masklets_are_empty(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "sav")
    for entry in run.videos:
        if entry.status == "failed":
            continue
        raw = json.loads((folder / f"{entry.video_id}_auto.json").read_text())
        assert len(raw["masklet"]) == entry.num_frames and raw["masklet_num"] == entry.num_masklets
        areas = np.array([[int(coco_mask.area(m)) for m in row] for row in raw["masklet"]]).reshape(
            entry.num_frames, -1
        )
        expected = np.zeros((entry.num_frames, entry.num_masklets), int)
        for frame in run.frames(entry.video_id):
            expected[frame.index, frame.masklet_id - 1] = frame.area_px()
        assert np.array_equal(areas, expected.reshape(areas.shape))
        visible = expected > 0
        for j in range(entry.num_masklets):
            first = int(visible[:, j].argmax())
            assert raw["masklet_first_appeared_frame"][j] == first
            assert raw["masklet_size_abs"][j] == pytest.approx(expected[visible[:, j], j].mean())
            assert raw["masklet_visibility_changes"][j] == int((np.diff(visible[first:, j].astype(int)) != 0).sum())


@KINDS
def test_label_studio_rectangles(tmp_path: Path, kind: str) -> None:
    run, folder = exported(tmp_path, kind, "labelstudio")
    tasks = json.loads((folder / "tasks.json").read_text())
    found = {}
    for task in tasks:
        for region in task["predictions"][0]["result"]:
            sequence = region["value"]["sequence"]
            frames = [step["frame"] for step in sequence]
            followed = [b == a + 1 for a, b in itertools.pairwise(frames)]
            assert [s["enabled"] for s in sequence] == [*followed, False]
            for step in sequence:
                key = (task["data"]["video_id"], step["frame"] - 1, region["meta"]["masklet_id"])
                found[key] = [step[k] for k in ("x", "y", "width", "height")]
    for frame, i in rows(run):
        height, width = frame.source_size
        x, y, w, h = np.array(found.pop((frame.video_id, frame.index, int(frame.masklet_id[i])))) / 100
        assert np.allclose([x * width, y * height, (x + w) * width, (y + h) * height], frame.xyxy[i], atol=1e-3)
    assert not found


@KINDS
def test_fiftyone_documents_hold_cropped_masks(tmp_path: Path, kind: str) -> None:
    import base64
    import zlib

    run, folder = exported(tmp_path, kind, "fiftyone")
    documents = json.loads((folder / "frames.json").read_text())["frames"]
    samples = {s["_id"]["$oid"]: s["video_id"] for s in json.loads((folder / "samples.json").read_text())["samples"]}
    detections = [
        (samples[d["_sample_id"]["$oid"]], d["frame_number"] - 1, det)
        for d in documents
        for det in d["masklets"]["detections"]
    ]
    for (video_id, index, det), (frame, i) in zip(detections, rows(run), strict=True):
        assert (video_id, index, det["index"]) == (frame.video_id, frame.index, frame.masklet_id[i])
        mask = np.load(io.BytesIO(zlib.decompress(base64.b64decode(det["mask"]["$binary"]["base64"]))))
        height, width = frame.source_size
        x, y = round(det["bounding_box"][0] * width), round(det["bounding_box"][1] * height)
        whole = np.zeros(frame.source_size, bool)
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        assert np.array_equal(whole, frame.masks()[i])


def test_datumaro_reads_the_cvat_xml(tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro")
    run, folder = exported(tmp_path, "gaps", "cvat")
    dataset = datumaro.Dataset.import_from(str(folder / "clip.xml"), "cvat")
    shapes = [a for item in dataset for a in item.annotations if not a.attributes.get("outside")]
    assert len(shapes) == len(run.table())


def test_rerun_recording_verifies(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    _, folder = exported(tmp_path, "gaps", "rerun")
    assert (folder / "clip.rrd").read_bytes()[:4] in (b"RRF2", b"RRIO")
