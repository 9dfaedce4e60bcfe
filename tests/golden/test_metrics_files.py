"""``masklet eval``'s whole way, files in and scores out, against TrackEval's and Meta's readers of the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.evaluate import EvalReport
from pipeline.groundtruth import evaluate_runs
from pipeline.sinks import import_file
from pipeline.store import Run, open_run
from tests.golden.saco_cases import RECIPES, gt_json, make_case, pred_json
from tests.golden.test_metrics_saco import GOLDEN

trackeval = pytest.importorskip("trackeval")

SEQINFO = "[Sequence]\nname={name}\nframeRate=25\nseqLength={length}\nimWidth={width}\nimHeight={height}\n"

EQUAL_SCORES = ("all scores at the threshold", "equal scores")
"""AP ranks equal scores in file order, which an import does not keep: it numbers masklets by first appearance."""


def imported(path: Path, name: str, out: Path, **options: Any) -> Run:
    import_file(path, name, out, **options)
    return open_run(out)


def report(run: Run, gt: Path, metrics: Sequence[str], gt_format: str = "auto") -> EvalReport:
    result = evaluate_runs([run], gt, gt_format, metrics)
    assert isinstance(result, EvalReport)
    return result


@pytest.mark.parametrize("name", RECIPES)
def test_saco_files_equal_metas_toolkit(tmp_path: Path, name: str) -> None:
    videos = make_case(name)
    gt, pred = tmp_path / "ground_truth.json", tmp_path / "predictions.json"
    gt.write_text(json.dumps(gt_json(videos)))
    pred.write_text(json.dumps(pred_json(videos)))
    got = report(imported(pred, "saco", tmp_path / "run"), gt, ("cgf1", "ap", "hota"))
    golden = GOLDEN[name]
    for kind, prefix in (("mask", "video_mask"), ("box", "video_bbox")):
        assert got.score("cgF1", kind) == pytest.approx(golden[f"{prefix}_demo_cgf1_micro_50_95"], abs=1e-6)
        assert got.score("IL_MCC", kind) == pytest.approx(golden[f"{prefix}_demo_ilmcc_50_95"], abs=1e-6)
        assert got.score("pHOTA", kind) == pytest.approx(golden[f"{prefix}_all_phrase_HOTA"], abs=1e-6)
        if name not in EQUAL_SCORES:
            assert got.score("AP", kind) == pytest.approx(golden[f"{prefix}_mAP_50_95"], abs=1e-6)
    assert set(got.videos) == {f"video_{v.video_id}" for v in videos}


def test_scores_at_the_threshold_count_for_cgf1_and_not_for_phota(tmp_path: Path) -> None:
    videos = make_case("all scores at the threshold")
    gt, pred = tmp_path / "ground_truth.json", tmp_path / "predictions.json"
    gt.write_text(json.dumps(gt_json(videos)))
    pred.write_text(json.dumps(pred_json(videos)))
    got = report(imported(pred, "saco", tmp_path / "run"), gt, ("cgf1", "hota"))
    assert got.score("cgF1") > 0
    assert got.score("pHOTA") == 0
    assert got.score("HOTA") > 0  # of the run as it is


def mot_rows(seed: int, classes: bool) -> tuple[list[str], list[str]]:
    """Ground truth and results: walkers, some flagged, and (MOT16) cars, static people and reflections."""
    rng = np.random.default_rng(seed)
    gt, pred = [], []
    boxes = np.column_stack([rng.uniform(0, 500, (14, 2)), rng.uniform(20, 60, 14), rng.uniform(60, 140, 14)])
    kinds = rng.choice([1, 1, 1, 3, 7, 8, 12, 2], 14)
    for frame in range(1, 31):
        boxes[:, :2] += rng.uniform(-4, 4, (14, 2))
        for i, (box, kind) in enumerate(zip(boxes, kinds, strict=True), start=1):
            if rng.random() < 0.1:
                continue
            flag = int(rng.random() > 0.15) if kind == 1 or not classes else 0
            tail = f"{flag},{kind},0.8" if classes else f"{flag},-1,-1,-1"
            gt.append(f"{frame},{i},{','.join(f'{v:.2f}' for v in box)},{tail}")
            if rng.random() < 0.8:
                noisy = box + rng.normal(0, 5, 4)
                track = i + 100 * (rng.random() < 0.05)
                pred.append(f"{frame},{track},{','.join(f'{v:.2f}' for v in noisy)},0.9,-1,-1,-1")
    return gt, pred


def trackeval_mot(tmp_path: Path, benchmark: str, length: int) -> Mapping[str, Any]:
    """TrackEval's own numbers, by its own reader and preprocessing."""
    dataset = trackeval.datasets.MotChallenge2DBox(
        {
            "GT_FOLDER": str(tmp_path / "gt"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "BENCHMARK": benchmark,
            "SEQ_INFO": {"seq": length},
            "SKIP_SPLIT_FOL": True,
            "TRACKERS_TO_EVAL": ["ours"],
            "PRINT_CONFIG": False,
        }
    )
    data = dataset.get_preprocessed_seq_data(dataset.get_raw_seq_data("ours", "seq"), "pedestrian")
    return trackeval_scores(data)


def trackeval_scores(data: dict[str, Any]) -> Mapping[str, Any]:
    config = {"PRINT_CONFIG": False, "THRESHOLD": 0.5}
    return {
        **trackeval.metrics.HOTA().eval_sequence(data),
        **trackeval.metrics.CLEAR(config).eval_sequence(data),
        **trackeval.metrics.Identity(config).eval_sequence(data),
    }


def write_sequence(tmp_path: Path, gt: Sequence[str], pred: Sequence[str], length: int, size: tuple[int, int]) -> Path:
    folder, trackers = tmp_path / "gt" / "seq", tmp_path / "trackers" / "ours" / "data"
    (folder / "gt").mkdir(parents=True)
    trackers.mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text("\n".join(gt) + "\n")
    seqinfo = SEQINFO.format(name="seq", length=length, width=size[0], height=size[1])
    (folder / "seqinfo.ini").write_text(seqinfo)
    (trackers / "seq.txt").write_text("\n".join(pred) + "\n")
    (trackers / "seq.ini").write_text(seqinfo)
    return folder


def assert_equal(got: EvalReport, theirs: Mapping[str, Any], kind: str) -> None:
    for name in ("HOTA", "DetA", "AssA", "LocA", "MOTA", "MOTP", "IDSW", "Frag", "MT", "IDF1", "IDTP", "IDFP"):
        assert got.score(name, kind) == pytest.approx(float(np.mean(theirs[name])), abs=1e-6), name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("benchmark", ["MOT15", "MOT17"])
def test_mot_files_equal_trackeval_with_its_preprocessing(tmp_path: Path, benchmark: str, seed: int) -> None:
    gt, pred = mot_rows(seed, classes=benchmark == "MOT17")
    folder = write_sequence(tmp_path, gt, pred, 30, (600, 700))
    run = imported(tmp_path / "trackers" / "ours" / "data" / "seq.txt", "mot", tmp_path / "run")
    got = report(run, folder, ("hota", "clear", "identity", "jf"))
    assert_equal(got, trackeval_mot(tmp_path, benchmark, 30), "box")
    assert got.kinds == ("box",)
    assert any("J&F left out" in note for note in got.notes)


def mots_rows(seed: int) -> tuple[list[str], list[str]]:
    """Strips of pixels, so that no masks overlap, and ignored regions with predictions inside."""
    rng = np.random.default_rng(seed)
    gt, pred = [], []
    for frame in range(1, 13):
        for lane in range(6):
            x = int(rng.integers(0, 30))
            if rng.random() < 0.9:
                kind = 10 if lane == 5 else 2
                gt.append(strip(frame, 10000 if kind == 10 else 2001 + lane, kind, lane, x, 20))
            if rng.random() < 0.8:
                pred.append(
                    strip(frame, 2001 + lane + int(rng.random() < 0.1) * 20, 2, lane, x + int(rng.integers(0, 9)), 18)
                )
    return gt, pred


def strip(frame: int, track: int, kind: int, lane: int, x: int, width: int) -> str:
    mask = np.zeros((1, 48, 64), bool)
    mask[0, lane * 8 : lane * 8 + 7, x : x + width] = True
    return f"{frame} {track} {kind} 48 64 {mask_ops.encode(mask)[0].counts.decode()}"


@pytest.mark.parametrize("seed", range(3))
def test_mots_files_equal_trackeval_with_its_ignore_regions(tmp_path: Path, seed: int) -> None:
    gt, pred = mots_rows(seed)
    folder = write_sequence(tmp_path, gt, pred, 12, (64, 48))
    dataset = trackeval.datasets.MOTSChallenge(
        {
            "GT_FOLDER": str(tmp_path / "gt"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "SEQ_INFO": {"seq": 12},
            "SKIP_SPLIT_FOL": True,
            "TRACKERS_TO_EVAL": ["ours"],
            "PRINT_CONFIG": False,
        }
    )
    theirs = trackeval_scores(dataset.get_preprocessed_seq_data(dataset.get_raw_seq_data("ours", "seq"), "pedestrian"))
    run = imported(tmp_path / "trackers" / "ours" / "data" / "seq.txt", "mots", tmp_path / "run")
    got = report(run, folder, ("hota", "clear", "identity"))
    assert_equal(got, theirs, "mask")
    assert theirs["CLR_FP"] < sum(row.split()[1] not in {g.split()[1] for g in gt} for row in pred) + len(pred)
