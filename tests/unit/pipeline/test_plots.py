"""Plots of evaluations: that they are there, of the size of their content, and show what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.evaluate import Comparison, EvalReport
from pipeline.groundtruth import evaluate_runs
from pipeline.plots import MAX_ROWS, _curves, write_plots
from tests.runs import KINDS, make_run, write_run


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(image)


def test_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "several_videos")
    report = evaluate_runs([run], tmp_path / "run", "run", ["hota", "identity"])
    assert isinstance(report, EvalReport)
    files = write_plots(report, tmp_path / "plots")
    assert [f.name for f in files] == ["scores.png", "hota.png"]
    for file in files:
        image = read(file)
        assert image.shape[1] == 1600
        assert image.std() > 5


def test_two_runs_and_more_videos_than_fit(tmp_path: Path) -> None:
    spec = KINDS["plain"][0]
    many = [replace(spec, video_id=f"v{i:03d}", num_frames=2, num_masklets=1) for i in range(MAX_ROWS + 5)]
    truth = write_run(tmp_path / "truth", many)
    comparison = evaluate_runs([truth, truth], tmp_path / "truth", "run", ["clear"])
    assert isinstance(comparison, Comparison)
    files = write_plots(comparison, tmp_path / "plots")
    assert [f.name for f in files] == ["scores.png"]
    assert read(files[0]).shape[0] < 150 + (MAX_ROWS + 10) * 30 + 4 * 46


def test_nothing_at_all_can_be_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "empty")
    report = evaluate_runs([run], tmp_path / "run")
    assert len(write_plots(report, tmp_path / "plots")) == 2


def test_curves_are_where_their_values_are() -> None:
    alphas = np.arange(0.05, 0.99, 0.05)
    flat = {name: np.full(19, level) for name, level in (("HOTA", 0.5), ("DetA", 0.1), ("AssA", 0.9), ("LocA", 0.9))}
    image = _curves(200, 100, [{"alpha": alphas, **flat}])
    assert image[49:52, 100].min() < 60  # HOTA is dark, at half height
    assert image[30, 60].tolist() == [255, 255, 255]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "single_frame")
    report = evaluate_runs([run], tmp_path / "run", "run", ["clear"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the picture"):
        write_plots(report, tmp_path / "file")
