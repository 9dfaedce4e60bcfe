"""Every importable format, out and in again, on twenty seeded runs: nothing is lost but what the format says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.results import FrameResult
from pipeline.sinks import FORMATS, ExportReport, ImportReport, export_run, import_file
from pipeline.sinks.polygons import MAX_LOSS
from pipeline.sinks.segmentation import box_rle
from pipeline.store import Run, RunWriter, open_run
from tests.runs import SEEDED_RUNS, make_run

CASES = pytest.mark.parametrize(("kind", "seed"), SEEDED_RUNS)


def through(
    folder: Path, kind: str, seed: int, name: str, file: str = ""
) -> tuple[Run, Run, ExportReport, ImportReport]:
    """The run, the run that comes back, and both reports."""
    run = make_run(folder / "run", kind, seed)
    (exported,) = export_run(run, [name], folder / "out")
    imported = import_file(folder / "out" / name / file, name, folder / "back")
    return run, open_run(folder / "back"), exported, imported


def living(run: Run) -> list[str]:
    return [v.video_id for v in run.videos if v.status != "failed"]


def frames(run: Run, video_id: str) -> dict[int, FrameResult]:
    return {f.index: f for f in run.frames(video_id) if len(f)}


def assert_same_videos(run: Run, back: Run) -> None:
    """The same videos; formats with a file per video give them in the order of their names."""
    kept = [v for v in run.videos if v.status != "failed"]
    told = [
        [(v.video_id, v.width, v.height, v.fps, v.num_frames, v.num_masklets) for v in vs] for vs in (back.videos, kept)
    ]
    assert sorted(told[0], key=str) == sorted(told[1], key=str)


@CASES
@pytest.mark.parametrize(
    ("name", "file"), [("coco", ""), ("ytvis", "results.json"), ("ytvis", "annotations.json"), ("saco", "")]
)
def test_lossless_formats_give_every_column_back(tmp_path: Path, kind: str, seed: int, name: str, file: str) -> None:
    run, back, exported, imported = through(tmp_path, kind, seed, name, file)
    assert_same_videos(run, back)
    assert back.table().equals(run.table())
    assert back.manifest.prompts == run.manifest.prompts
    assert [n for n in exported.notes if "failed" not in n] == [] and imported.notes == ()


def test_importing_many_videos_does_not_write_the_manifest_after_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[int] = []
    save = RunWriter.save

    def counted(self: RunWriter) -> None:
        saves.append(len(self.manifest.videos))
        save(self)

    monkeypatch.setattr(RunWriter, "save", counted)
    monkeypatch.setattr("pipeline.store._PAUSE", float("inf"))
    kind, seed = next(case for case in SEEDED_RUNS if len(make_run(tmp_path / f"{case}", *case).videos) > 2)
    saves.clear()
    _, back, _, _ = through(tmp_path, kind, seed, "coco")
    assert saves[-2:] == [0, len(back.videos)], "at the start and at the end"


@CASES
def test_saco_ground_truth_gives_back_all_but_scores(tmp_path: Path, kind: str, seed: int) -> None:
    run, back, _, _ = through(tmp_path, kind, seed, "saco", "ground_truth.json")
    assert_same_videos(run, back)
    assert back.table().drop(["score"]).equals(run.table().drop(["score"]))
    assert all(v.prompts == run.manifest.prompts for v in back.videos), "negative phrases belong to each video"


@CASES
@pytest.mark.parametrize("name", ["mots", "davis"])
def test_label_formats_give_back_each_pixel_to_the_higher_score(
    tmp_path: Path, kind: str, seed: int, name: str
) -> None:
    run, back, exported, _ = through(tmp_path, kind, seed, name)
    if kind != "overlaps":
        assert_same_videos(run, back)
        assert back.table().drop(["score"]).equals(run.table().drop(["score"]))
        assert not any("claimed" in n for n in exported.notes)
        return
    assert any("claimed by more than one masklet" in n for n in exported.notes)
    for video_id in living(run):
        ours, theirs = frames(run, video_id), frames(back, video_id)
        for index, frame in ours.items():
            winner = np.where(frame.masks(), frame.score[:, None, None], -1).argmax(0)
            covered = frame.masks().any(0)
            expected = [(winner == i) & covered for i in range(len(frame))]
            assert np.array_equal(theirs[index].masks(), np.array([m for m in expected if m.any()]))


@CASES
def test_mot_gives_back_boxes_ids_phrases_and_scores(tmp_path: Path, kind: str, seed: int) -> None:
    run, back, exported, imported = through(tmp_path, kind, seed, "mot")
    assert_same_videos(run, back)
    assert back.table().drop(["area_px", "rle"]).equals(run.table().drop(["area_px", "rle"]))
    assert "masks became boxes" in exported.notes and "masks are the boxes, filled" in imported.notes
    for video_id in living(run):
        for frame in frames(back, video_id).values():
            assert frame.rles == tuple(box_rle(b, frame.source_size, "") for b in frame.xyxy.tolist())
            assert np.array_equal(mask_ops.boxes_to_masks(frame.xyxy, frame.source_size), frame.masks())


@CASES
def test_cvat_gives_back_masks_within_its_stated_tolerance(tmp_path: Path, kind: str, seed: int) -> None:
    run, back, exported, _ = through(tmp_path, kind, seed, "cvat")
    assert_same_videos(run, back)
    keys = ["video_id", "frame", "pts_s", "masklet_id", "prompt", "score"]
    assert back.table(columns=keys).equals(run.table(columns=keys))
    ious = []
    for video_id in living(run):
        theirs = frames(back, video_id)
        for index, frame in frames(run, video_id).items():
            ious += np.diag(mask_ops.rle_iou(frame.rles, theirs[index].rles)).tolist()
    if ious:
        assert min(ious) >= 1 - MAX_LOSS
        stated = next(n for n in exported.notes if "IoU" in n)
        assert f"mean {np.mean(ious):.4f}, least {min(ious):.4f} over {len(ious)} masks" in stated


def test_importable_formats_are_all_tested_above() -> None:
    tested = {"coco", "ytvis", "saco", "mots", "davis", "mot", "cvat"}
    assert {name for name, info in FORMATS.items() if info.importable} == tested
