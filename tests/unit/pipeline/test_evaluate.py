"""Runs against ground truth: what belongs together, what is refused, and what the report says."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import masks as mask_ops
from pipeline.errors import FormatError, UsageError
from pipeline.evaluate import METRICS, Comparison, EvalReport, FrameLabels, Role, evaluate, hota
from pipeline.evaluate.jf import boundary_f, frame_j_and_f
from pipeline.evaluate.labels import LabelledVideo
from pipeline.evaluate.track_ap import PhrasePair
from pipeline.groundtruth import detect_format, evaluate_runs, open_truth
from pipeline.sinks import export_run
from tests.runs import KINDS, make_run, write_run

SIZE = (40, 60)


def rectangle(x: int, y: int, width: int = 10, height: int = 8) -> Any:
    mask = np.zeros((1, *SIZE), bool)
    mask[0, y : y + height, x : x + width] = True
    return mask_ops.encode(mask)[0]


class FakeLabels:
    """Labels from a table ``{video: {frame: [(id, phrase, x, y)]}}``."""

    def __init__(
        self,
        table: Mapping[str, Mapping[int, Sequence[tuple[int, str, int, int]]]],
        *,
        asked: Sequence[str] | None = None,
        masks: bool = True,
        roles: Mapping[str, Role] | None = None,
        **video: Any,
    ) -> None:
        self._table, self.masks, self._roles = table, masks, roles or {}
        self.videos = tuple(
            replace(
                LabelledVideo(name, SIZE, 10, tuple(asked or sorted({r[1] for rows in frames.values() for r in rows}))),
                **video,
            )
            for name, frames in table.items()
        )

    def frames(self, video_id: str) -> Iterator[FrameLabels]:
        for index, rows in sorted(self._table[video_id].items()):
            rles = tuple(rectangle(x, y) for _, _, x, y in rows)
            yield FrameLabels(
                index,
                np.array([r[0] for r in rows], np.int64),
                tuple(r[1] for r in rows),
                np.ones(len(rows)),
                mask_ops.rle_boxes(rles).astype(float),
                rles if self.masks else None,
                np.array([self._roles.get(r[1], Role.OBJECT) for r in rows], np.int8),
            )


def still(
    track: int, phrase: str, x: int, y: int, frames: range = range(10)
) -> dict[int, list[tuple[int, str, int, int]]]:
    return {t: [(track, phrase, x, y)] for t in frames}


def together(*parts: Mapping[int, Sequence[tuple[int, str, int, int]]]) -> dict[int, list[tuple[int, str, int, int]]]:
    return {t: [r for part in parts for r in part.get(t, ())] for t in range(10)}


def test_a_run_against_itself_is_perfect(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "several_videos")
    report = evaluate_runs([run], tmp_path / "run")
    assert isinstance(report, EvalReport)
    for kind in ("mask", "box"):
        for name in ("HOTA", "MOTA", "IDF1", "AP", "phrase_AP"):
            assert report.score(name, kind) == pytest.approx(1), name
    assert report.score("J&F") == 1
    assert set(report.videos) == {"street", "street-2", "nothing", "broken"}
    assert report.to_dict() == json.loads(json.dumps(report.to_dict(), allow_nan=False))


@pytest.mark.parametrize("kind", ["empty", "single_frame", "one_pixel_frame"])
def test_smallest_runs_have_scores_and_a_table(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", kind)
    report = evaluate_runs([run], tmp_path / "run")
    assert isinstance(report, EvalReport)
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.rows()[0].level == "overall"
    assert len(report.rows()[0].cells) == len(report.columns())


def test_an_object_under_the_wrong_phrase_is_not_found() -> None:
    truth = FakeLabels({"v": together(still(1, "cat", 0, 0), still(2, "dog", 30, 20))})
    run = FakeLabels({"v": together(still(1, "cat", 0, 0), still(2, "cat", 30, 20))})
    report = evaluate(run, truth)
    assert (report.score("TP"), report.score("FP"), report.score("FN")) == (10, 10, 10)
    assert report.phrases["dog"]["mask"]["HOTA"] == 0
    assert report.pairs["v"]["cat"]["mask"]["Recall"] == 1
    ignored = evaluate(run, truth, ["hota"], matching="ignore")
    assert ignored.score("HOTA") == pytest.approx(1)
    assert ignored.notes == ()


def test_without_a_phrase_in_common_phrases_are_ignored_and_it_is_said() -> None:
    report = evaluate(FakeLabels({"v": still(1, "person", 0, 0)}), FakeLabels({"v": still(1, "pedestrian", 0, 0)}))
    assert report.score("HOTA") == pytest.approx(1)
    assert any("no phrase in common" in note for note in report.notes)
    demanded = evaluate(
        FakeLabels({"v": still(1, "person", 0, 0)}), FakeLabels({"v": still(1, "pedestrian", 0, 0)}), matching="match"
    )
    assert demanded.score("HOTA") == 0


def test_phrases_agree_whatever_their_case_and_spaces() -> None:
    report = evaluate(FakeLabels({"v": still(1, "Red  Car", 0, 0)}), FakeLabels({"v": still(1, "red car", 0, 0)}))
    assert report.score("HOTA") == pytest.approx(1)
    assert list(report.phrases) == ["red car"]


def test_absent_phrases_count_in_cgf1() -> None:
    truth = FakeLabels({"v": still(1, "cat", 0, 0)}, asked=("cat", "dog"))
    good = evaluate(FakeLabels({"v": still(1, "cat", 0, 0)}), truth, ["cgf1"])
    bad = evaluate(FakeLabels({"v": together(still(1, "cat", 0, 0), still(2, "dog", 9, 9))}), truth, ["cgf1"])
    assert good.score("cgF1") == pytest.approx(1, abs=1e-3)
    assert bad.score("cgF1") == 0
    assert good.notes == bad.notes == ()
    never_absent = evaluate(
        FakeLabels({"v": still(1, "cat", 0, 0)}), FakeLabels({"v": still(1, "cat", 0, 0)}), ["cgf1"]
    )
    assert never_absent.score("cgF1") == 0
    assert any("by definition" in note for note in never_absent.notes)


def test_distractors_excuse_and_left_out_objects_do_not() -> None:
    table = together(still(1, "cat", 0, 0), still(2, "poster", 30, 20), still(3, "far cat", 0, 30))
    roles = {"poster": Role.DISTRACTOR, "far cat": Role.LEFT_OUT}
    truth = FakeLabels({"v": table}, roles=roles)
    run = FakeLabels({"v": together(still(1, "cat", 0, 0), still(2, "cat", 30, 20), still(3, "cat", 0, 30))})
    report = evaluate(run, truth, ["clear"])
    assert (report.score("TP"), report.score("FP"), report.score("FN")) == (10, 10, 0)


def test_ignore_regions_excuse_what_lies_in_them() -> None:
    truth = FakeLabels(
        {"v": together(still(1, "cat", 0, 0), still(9, "crowd", 30, 20))}, roles={"crowd": Role.IGNORE_REGION}
    )
    run = FakeLabels({"v": together(still(1, "cat", 0, 0), still(2, "cat", 32, 21), still(3, "cat", 20, 30))})
    report = evaluate(run, truth, ["clear"])
    assert (report.score("TP"), report.score("FP")) == (10, 10)


def test_boxes_only_leave_masks_out() -> None:
    truth = FakeLabels({"v": still(1, "cat", 0, 0)}, masks=False)
    run = FakeLabels({"v": still(1, "cat", 0, 0)})
    report = evaluate(run, truth)
    assert report.kinds == ("box",)
    assert report.score("HOTA") == pytest.approx(1)
    with pytest.raises(UsageError, match="boxes only"):
        evaluate(run, truth, ["jf"])


def test_sparse_ground_truth_is_compared_where_it_is() -> None:
    truth = FakeLabels({"v": still(1, "cat", 0, 0, range(0, 10, 4))}, sparse=True)
    run = FakeLabels({"v": together(still(1, "cat", 0, 0), still(2, "cat", 30, 20, range(1, 4)))})
    report = evaluate(run, truth)
    assert (report.score("TP"), report.score("FP")) == (3, 0)
    assert report.score("J&F") == 1
    assert any("only frames that have annotations" in note for note in report.notes)


@pytest.mark.parametrize(
    "sampling", ["stride: 3", "stride: 2\n  start: '4'\n  stop: '16'", "start: 0.4s\n  stop: 0.7s"]
)
def test_frames_that_were_not_tracked_are_not_held_against_a_run(tmp_path: Path, sampling: str) -> None:
    truth = make_run(tmp_path / "truth", "gaps")
    run = copy.deepcopy(truth)
    run.folder = tmp_path / "run"
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(f"sampling:\n  {sampling}\n")
    frames = {
        "stride: 3": range(0, 20, 3),
        "stride: 2\n  start: '4'\n  stop: '16'": range(4, 16, 2),
        "start: 0.4s\n  stop: 0.7s": range(12, 20),
    }[sampling]
    run.manifest.videos[0].num_tracked = len(frames)
    (run.folder / "masklets" / "clip").mkdir(parents=True)
    rows = truth.table("clip")
    rows = rows.filter([f in frames for f in rows["frame"].to_pylist()])
    pq.write_table(rows, run.folder / "masklets" / "clip" / "part-00000.parquet")
    report = evaluate_runs([run], tmp_path / "truth", "run", ["hota", "clear", "jf"])
    assert isinstance(report, EvalReport)
    assert report.score("HOTA") == pytest.approx(1)
    assert (report.score("TP"), report.score("FN")) == (len(rows), 0)
    assert report.score("J&F") == 1
    assert any(f"{len(frames)} of 20 frames" in note for note in report.notes)


def test_two_single_videos_belong_together_whatever_their_names() -> None:
    report = evaluate(FakeLabels({"street": still(1, "cat", 0, 0)}), FakeLabels({"gt": still(1, "cat", 0, 0)}))
    assert report.score("HOTA") == pytest.approx(1)


def test_videos_missing_on_one_side_are_told() -> None:
    truth = FakeLabels({"a": still(1, "cat", 0, 0), "b": still(1, "cat", 0, 0)})
    report = evaluate(FakeLabels({"a": still(1, "cat", 0, 0), "c": still(1, "cat", 0, 0)}), truth)
    assert (report.score("TP"), report.score("FN"), report.score("FP")) == (10, 10, 0)
    assert any("not in the run" in n and "b" in n for n in report.notes)
    assert any("without ground truth" in n and "c" in n for n in report.notes)
    assert report.videos["b"]["mask"]["HOTA"] == 0


def test_a_partial_run_is_judged_on_the_whole_video() -> None:
    truth = FakeLabels({"v": still(1, "cat", 0, 0)})
    run = FakeLabels({"v": still(1, "cat", 0, 0, range(4))}, partial=True, num_frames=4)
    report = evaluate(run, truth)
    assert (report.score("TP"), report.score("FN")) == (4, 6)
    assert any("stopped early" in n for n in report.notes)


@pytest.mark.parametrize(
    ("truth", "run", "message"),
    [
        ({"size": (99, 60)}, {}, "60 x 99, the run 60 x 40"),
        ({"num_frames": 5}, {}, "the run has objects on frame 5"),
        ({}, {"num_frames": 5}, "the ground truth has objects on frame 5"),
    ],
)
def test_ground_truth_of_another_video_is_refused(truth: Any, run: Any, message: str) -> None:
    longer = still(1, "cat", 0, 0)
    one, other = longer, longer
    if "num_frames" in truth:
        one = still(1, "cat", 0, 0, range(5))
    if "num_frames" in run:
        other = still(1, "cat", 0, 0, range(5))
    with pytest.raises(FormatError, match=message):
        evaluate(FakeLabels({"v": other}, **run), FakeLabels({"v": one}, **truth))


def test_no_video_in_common_is_refused() -> None:
    truth = FakeLabels({"a": still(1, "cat", 0, 0), "b": still(1, "cat", 0, 0)})
    with pytest.raises(FormatError, match=r"no video of the ground truth is in the run \(a, b\): the run has: c, d"):
        evaluate(FakeLabels({"c": still(1, "cat", 0, 0), "d": {}}), truth)


def test_duplicate_ids_and_changing_phrases_are_refused() -> None:
    truth = FakeLabels({"v": still(1, "cat", 0, 0)})
    twice = FakeLabels({"v": {0: [(1, "cat", 0, 0), (1, "cat", 20, 0)]}})
    with pytest.raises(FormatError, match="an id appears twice in the prediction of frame 0"):
        evaluate(twice, truth)
    changing = FakeLabels({"v": {0: [(1, "cat", 0, 0)], 1: [(1, "dog", 0, 0)]}})
    with pytest.raises(FormatError, match="object 1 of the prediction is 'cat' and, on frame 1, 'dog'"):
        evaluate(changing, truth)


@pytest.mark.parametrize("metrics", [[], ["hotta"], ["hota", "nope"]])
def test_unknown_metrics_are_refused(metrics: list[str]) -> None:
    labels = FakeLabels({"v": still(1, "cat", 0, 0)})
    with pytest.raises(UsageError, match="choose from hota"):
        evaluate(labels, labels, metrics)


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_can_be_asked_for_alone(metric: str) -> None:
    labels = FakeLabels({"v": still(1, "cat", 0, 0)})
    report = evaluate(labels, labels, [metric])
    assert report.columns()
    assert all(len(row.cells) == len(report.columns()) for row in report.rows())


def test_two_runs_are_compared_video_by_video(tmp_path: Path) -> None:
    truth = make_run(tmp_path / "truth", "several_videos", 0)
    worse = write_run(tmp_path / "worse", [replace(s, gaps=True) for s in KINDS["several_videos"]], 0)
    comparison = evaluate_runs([truth, worse], tmp_path / "truth", "run", ["hota", "clear"])
    assert isinstance(comparison, Comparison)
    difference = comparison.differences()
    assert set(difference["videos"]) == {"street", "street-2", "nothing", "broken"}
    first, second = comparison.first, comparison.second
    expected = second.videos["street-2"]["mask"]["HOTA"] - first.videos["street-2"]["mask"]["HOTA"]
    assert difference["videos"]["street-2"]["mask"]["HOTA"] == expected
    assert expected < 0
    rows = comparison.rows()
    assert rows[0].level == "overall"
    assert rows[0].cells[0].startswith("100.00 -> ")
    changes = [difference["videos"][r.name]["mask"]["HOTA"] for r in rows if r.level == "video" and r.kind == "mask"]
    assert changes == sorted(changes)
    json.dumps(comparison.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["coco", "ytvis", "saco", "mot", "mots", "davis"])
def test_ground_truth_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", "plain")
    export_run(run, [name], tmp_path / "out")
    gt = tmp_path / "out" / name
    if name == "saco":
        gt = gt / "ground_truth.json"
    if name == "ytvis":
        gt = next(p for p in sorted(gt.glob("*.json")) if "videos" in json.loads(p.read_text()))
    assert detect_format(gt) == name
    report = evaluate_runs([run], gt, "auto", ["hota"])
    assert isinstance(report, EvalReport)
    exact = name not in ("mot", "mots", "davis")
    assert report.score("HOTA", "box") == pytest.approx(1, abs=1e-9 if exact else 0.05)
    with open_truth(tmp_path / "run") as truth:
        assert truth.videos[0].video_id == "clip"


@pytest.mark.parametrize(
    ("name", "content"),
    [("gt.json", "{"), ("gt.json", "[]"), ("gt.txt", "hello"), ("gt.bin", "x"), ("gt.json", '{"a": 1}')],
)
def test_files_of_no_format_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError):
        detect_format(tmp_path / name)


def test_missing_files_unknown_formats_and_numbers_of_runs_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    with pytest.raises(UsageError, match="no such file"):
        evaluate_runs([run], tmp_path / "none")
    with pytest.raises(UsageError, match="unknown ground truth format 'voc'"):
        evaluate_runs([run], tmp_path / "run", "voc")
    with pytest.raises(UsageError, match="3 runs"):
        evaluate_runs([run] * 3, tmp_path / "run")


def test_arguments_of_pure_functions_are_checked() -> None:
    ids = [np.array([1, 2])]
    with pytest.raises(ValueError, match="similarity is"):
        hota(ids, ids, [np.zeros((1, 2))])
    with pytest.raises(ValueError, match="frames differ"):
        hota(ids, [], [])
    with pytest.raises(ValueError, match="an id appears twice in the ground truth"):
        hota([np.array([1, 1])], ids, [np.zeros((2, 2))])
    with pytest.raises(ValueError, match="iou must have 2 rows"):
        PhrasePair("v", "p", np.zeros(2), np.zeros((1, 1)))


def test_contours_at_the_edge_and_absence() -> None:
    whole = np.ones((20, 20), bool)
    assert boundary_f(whole, whole) == 1
    assert boundary_f(np.zeros((20, 20), bool), np.eye(20, dtype=bool)) == 0
    assert frame_j_and_f(None, None) == (1, 1)
    assert frame_j_and_f(rectangle(0, 0), None) == (0, 0)
    with pytest.raises(ValueError, match="differ in size"):
        frame_j_and_f(rectangle(0, 0), mask_ops.encode(np.ones((1, 5, 5), bool))[0])


def test_undefined_scores_are_null_in_json() -> None:
    labels = FakeLabels({"v": {}}, asked=("cat",))
    report = evaluate(labels, labels, ["ap"])
    assert math.isnan(report.score("AP"))
    assert report.to_dict()["overall"]["mask"]["AP"] is None
    assert "-" in report.rows()[0].cells


def test_where_nothing_is_and_nothing_was_said_there_is_no_score() -> None:
    labels = FakeLabels({"a": still(1, "cat", 0, 0), "b": {}})
    report = evaluate(labels, labels)
    assert report.score("HOTA") == pytest.approx(1)
    assert all(math.isnan(v) for v in report.videos["b"]["mask"].values())


def test_label_images_of_every_fourth_frame_are_sparse_ground_truth(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    export_run(run, ["davis"], tmp_path / "out")
    for file in (tmp_path / "out" / "davis").rglob("*.png"):
        if int(file.stem) % 4:
            file.unlink()
    report = evaluate_runs([run], tmp_path / "out" / "davis", "davis", ["clear"])
    assert isinstance(report, EvalReport)
    assert report.score("FP") == report.score("FN") == 0
    assert report.score("TP") == sum(len(f) for f in run.frames("clip") if f.index % 4 == 0)
    assert any("only frames that have annotations" in note for note in report.notes)


def test_text_without_a_seqinfo_says_nothing_of_size_and_length(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    rows = []
    for result in run.frames("clip"):
        for track, (x1, y1, x2, y2) in zip(result.masklet_id, result.xyxy, strict=True):
            if result.index < 6:
                rows.append(f"{result.index + 1},{track},{x1},{y1},{x2 - x1},{y2 - y1},1,-1,-1,-1")
    (tmp_path / "gt.txt").write_text("\n".join(rows))
    report = evaluate_runs([run], tmp_path / "gt.txt", metrics=["clear"])
    assert isinstance(report, EvalReport)
    assert (report.score("TP"), report.score("FN")) == (len(rows), 0)
    assert report.score("FP") == run.table().num_rows - len(rows)
