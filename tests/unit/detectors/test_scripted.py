"""Detections from files: what each format gives, phrase by phrase, and what malformed ones are told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import DetectorConfig
from pipeline import masks as mask_ops
from pipeline.detectors.scripted import ScriptedDetector, scripted_prompts
from pipeline.errors import FormatError, UsageError
from pipeline.types import Detections, Detector, Frame, Prompts
from tests.runs import make_run

SIZE = (20, 30)


def frame(index: int, stream_id: str = "clip", size: tuple[int, int] = SIZE) -> Frame:
    return Frame(stream_id, index, index / 10, np.zeros((2, 2, 3), np.uint8), size)


def write(path: Path, content: Any) -> DetectorConfig:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return DetectorConfig(detections=str(path))


def detect(config: DetectorConfig, index: int, *phrases: str, stream_id: str = "clip") -> tuple[Detections, Prompts]:
    prompts = scripted_prompts(config, phrases)
    detector = ScriptedDetector(config)
    assert isinstance(detector, Detector)
    return detector.detect([frame(index, stream_id)], prompts)[0], prompts


def square(x: int, y: int, side: int = 4) -> dict[str, Any]:
    mask = np.zeros((1, *SIZE), bool)
    mask[0, y : y + side, x : x + side] = True
    return {"size": list(SIZE), "counts": mask_ops.encode(mask)[0].counts.decode()}


def test_mot_text_frames_count_from_one_and_best_scores_come_first(tmp_path: Path) -> None:
    config = write(tmp_path / "det.txt", "1,-1,2,3,10,5,0.25,-1,-1,-1\n1,-1,4.5,6,2,3,0.75\n\n3,-1,0,0,1,1,1\n")
    found, prompts = detect(config, 0, "person")
    assert prompts.phrases == ("person",)
    assert found.xyxy.tolist() == [[4.5, 6, 6.5, 9], [2, 3, 12, 8]]
    assert found.score.tolist() == [0.75, 0.25]
    assert found.prompt_id.tolist() == [0, 0]
    assert found.mask_logits.shape == (2, 1, 1)
    assert len(detect(config, 1, "person")[0]) == 0
    assert len(detect(config, 2)[0]) == 1


def test_mot_text_without_a_phrase_is_an_object(tmp_path: Path) -> None:
    assert scripted_prompts(write(tmp_path / "det.txt", "1,-1,2,3,10,5,0.5\n"), ()).phrases == ("object",)


def test_a_folder_has_a_file_per_video(tmp_path: Path) -> None:
    for name, x in (("a", 1), ("b", 2)):
        (tmp_path / name / "det").mkdir(parents=True)
        (tmp_path / name / "det" / "det.txt").write_text(f"1,-1,{x},0,5,5,0.5\n")
    config = DetectorConfig(detections=str(tmp_path))
    assert detect(config, 0, stream_id="a")[0].xyxy[0, 0] == 1
    assert detect(config, 0, stream_id="b")[0].xyxy[0, 0] == 2
    with pytest.raises(UsageError, match="no detections of video 'c'"):
        detect(config, 0, stream_id="c")


def test_scores_that_are_no_probabilities_are_stretched_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write(tmp_path / "det.txt", "1,-1,2,3,9,5,-10\n1,-1,2,3,9,5,30\n1,-1,2,3,9,5,10\n")
    with caplog.at_level(logging.WARNING, logger="masklet"):
        logging.getLogger("masklet").addHandler(caplog.handler)
        found, _ = detect(config, 0)
        logging.getLogger("masklet").removeHandler(caplog.handler)
    assert found.score.tolist() == [1.0, 0.5, 0.0]
    assert "stretched" in caplog.text


def test_coco_results_have_boxes_and_masks(tmp_path: Path) -> None:
    rows = [
        {"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 4, "category_id": 1, "segmentation": square(5, 6), "score": 0.9},
    ]
    found, prompts = detect(write(tmp_path / "results.json", rows), 4, "cat")
    assert prompts.phrases == ("cat",)
    assert found.xyxy.tolist() == [[5, 6, 9, 10], [1, 2, 4, 6]]
    assert found.mask_logits.shape == (2, *SIZE)
    masks = found.mask_logits > 0
    assert masks.sum((1, 2)).tolist() == [16, 12]
    assert masks[0, 6:10, 5:9].all()
    assert masks[1, 2:6, 1:4].all()


def test_coco_data_sets_name_videos_and_phrases(tmp_path: Path) -> None:
    document = {
        "videos": [{"id": 1, "name": "street.mp4"}, {"id": 2, "name": "yard"}],
        "images": [{"id": 10, "video_id": 1, "frame_id": 3}, {"id": 11, "video_id": 2, "frame_id": 3}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 10, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5},
            {"image_id": 10, "category_id": 1, "bbox": [2, 2, 3, 4], "score": 0.4},
            {"image_id": 11, "category_id": 1, "bbox": [3, 2, 3, 4], "score": 0.4},
        ],
    }
    config = write(tmp_path / "data.json", document)
    found, prompts = detect(config, 3, stream_id="street")
    assert prompts.phrases == ("dog", "cat")
    assert found.prompt_id.tolist() == [0, 1]
    only_cats, _ = detect(config, 3, "cat", stream_id="street")
    assert only_cats.xyxy[:, 0].tolist() == [2]
    with pytest.raises(UsageError, match=r"no detection of bird.*it has: dog, cat"):
        scripted_prompts(config, ("bird",))


def test_a_run_can_be_tracked_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    result = next(r for r in run.frames("clip") if len(r) > 1)
    config = DetectorConfig(detections=str(tmp_path / "run"))
    prompts = scripted_prompts(config, ())
    whole = frame(result.index, "clip", result.source_size)
    found = ScriptedDetector(config).detect([whole], prompts)[0]
    order = np.argsort(-result.score, kind="stable")
    assert [prompts.phrases[i] for i in found.prompt_id] == [result.prompt[i] for i in order]
    np.testing.assert_array_equal(found.score, result.score[order])
    np.testing.assert_array_equal(found.mask_logits > 0, result.masks()[order])


def test_parquet_of_boxes_needs_no_more_than_frame_and_box(tmp_path: Path) -> None:
    columns = {"frame": [0, 2], "x1": [1.0, 2.0], "y1": [1.0, 2.0], "x2": [5.0, 6.0], "y2": [7.0, 8.0]}
    pq.write_table(pa.table(columns), tmp_path / "boxes.parquet")
    found, _ = detect(DetectorConfig(detections=str(tmp_path / "boxes.parquet")), 2)
    assert found.xyxy.tolist() == [[2, 2, 6, 8]]
    assert found.score.tolist() == [1.0]


def test_several_phrases_cannot_share_unnamed_rows(tmp_path: Path) -> None:
    config = write(tmp_path / "det.txt", "1,-1,2,3,10,5,0.5\n")
    with pytest.raises(UsageError, match="name no phrases"):
        scripted_prompts(config, ("cat", "dog"))


def test_an_empty_file_finds_nothing(tmp_path: Path) -> None:
    assert len(detect(write(tmp_path / "det.txt", ""), 0)[0]) == 0
    assert len(detect(write(tmp_path / "results.json", []), 0)[0]) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("det.txt", "1,-1,2,3\n", "4 columns"),
        ("det.txt", "0,-1,2,3,4,5,1\n", "whole number from 1"),
        ("det.txt", "1.5,-1,2,3,4,5,1\n", "whole number from 1"),
        ("det.txt", "1,-1,nan,3,4,5,1\n", "line 1"),
        ("det.txt", "1,-1,2,3,4,-5,1\n", "4 x -5 pixels"),
        ("det.txt", "\x00\xff", "columns|MOT"),
        ("results.json", "{", "not a JSON file"),
        ("results.json", {"info": 1}, "neither a list"),
        ("results.json", [7], "must be an object"),
        ("results.json", [{"image_id": 0}], "neither bbox nor segmentation"),
        ("results.json", [{"image_id": "x", "bbox": [1, 2, 3, 4]}], "number is expected"),
        ("results.json", [{"image_id": 0, "bbox": [1, 2, 3]}], "bbox must be"),
        ("results.json", [{"image_id": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]}], "run lengths"),
        ("results.json", [{"image_id": 0, "segmentation": {"size": [2, 2], "counts": [1, 1]}}], "do not fill"),
        ("results.json", {"images": [{"id": 1}], "annotations": [{"image_id": 9}]}, "image '9' is not listed"),
        ("boxes.parquet", "PAR1", "not a Parquet file"),
    ],
)
def test_malformed_files_are_told_what_is_wrong(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        ScriptedDetector(write(tmp_path / name, content))


def test_masks_of_another_size_and_broken_ones_never_reach_the_decoder(tmp_path: Path) -> None:
    for segmentation, message in (
        ({"size": [9, 9], "counts": square(0, 0)["counts"]}, "its size is"),
        ({"size": list(SIZE), "counts": "ab"}, "run lengths"),
        ({"size": list(SIZE), "counts": ""}, "malformed"),
    ):
        config = write(tmp_path / "results.json", [{"image_id": 0, "segmentation": segmentation}])
        with pytest.raises(FormatError, match=message):
            detect(config, 0)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        ScriptedDetector(DetectorConfig(detections=str(tmp_path / "none.txt")))
