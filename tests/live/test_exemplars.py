"""``--box`` and ``--not-text`` on streams: as in ``track``, and what only a camera can do: wait, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from configs.load import load_config
from pipeline import api
from pipeline.errors import UsageError
from pipeline.live.exemplars import PLACEHOLDER, Exemplars
from pipeline.live.run import StreamOptions, run_stream
from pipeline.store import open_run
from pipeline.types import BoxPrompt
from tests.live.fakes import ColourDetector, prompts_of
from tests.live.test_sources import write_video
from tests.live.test_worker import Bench

RED, BLUE = "2:95,20,118,50", "2:139,56,168,88"
"""Around the first two discs of the clip."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "discs.mp4", num_frames=12, size=(144, 192))


def rows(clip: Path, out: Path, is_live: bool, **asked: Any) -> pa.Table:
    torch.set_num_threads(1)
    values = {"device": {"name": "cpu", "threads": 1}, "live": {"latency_frames": 15}, "detector": {"batch_frames": 1}}
    values |= {"tracker": {"name": "bytetrack", "new_object_score": 0.5}, **asked}
    config = load_config("live", (), values)
    if is_live:
        assert run_stream(config, StreamOptions(urls=(str(clip),), out=out)) == 0
    else:
        api.track_to_run(config, [str(clip)], out)
    return open_run(out).table()


@pytest.mark.parametrize(
    ("asked", "without"),
    [
        ({"prompts": ["circle"], "not_prompts": ["blue circle"]}, {"prompts": ["circle"]}),
        ({"prompts": ["circle"], "boxes": [RED]}, {"prompts": ["circle"]}),
        ({"boxes": [RED]}, {"boxes": [BLUE]}),
    ],
)
def test_rows_are_those_of_track(clip: Path, tmp_path: Path, asked: dict[str, Any], without: dict[str, Any]) -> None:
    live = rows(clip, tmp_path / "live", True, **asked)
    assert live.num_rows > 0
    assert live.equals(rows(clip, tmp_path / "offline", False, **asked))
    assert not live.equals(rows(clip, tmp_path / "without", True, **without))


def with_box(folder: Path) -> Bench:
    """Two cameras and a box on the red disc of frame 3 of the first."""
    exemplars = Exemplars([BoxPrompt(3, (150, 36, 170, 56))], "a", ColourDetector().encode_boxes, folder)
    bench = Bench("a", "b", prompts=prompts_of([PLACEHOLDER]), exemplars=exemplars)
    bench.cameras["a"].film(20)
    bench.cameras["b"].film(20)
    return bench


def test_a_box_on_a_camera_waits_for_its_frame_and_then_holds_for_all(tmp_path: Path) -> None:
    bench = with_box(tmp_path)
    bench.step(10)
    for name in "ab":
        found = {index for index, ids in bench.rows(name).items() if ids}
        assert found == set(range(3, 10))
    # A restarted stream finds the same without that frame.
    again = with_box(tmp_path)
    again.step(2)
    assert all(again.rows("b").values())


def test_bad_boxes_are_explained(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the video is shorter"):
        rows(clip, tmp_path / "a", True, prompts=["circle"], boxes=["500:1,1,9,9"])
    with pytest.raises(UsageError, match="no area"):
        rows(clip, tmp_path / "b", True, prompts=["circle"], boxes=["0:900,900,950,950"])
    config = load_config("live", (), {"prompts": ["circle"], "boxes": [RED]})
    with pytest.raises(UsageError, match="first camera"):
        run_stream(config, StreamOptions(serve="127.0.0.1:0"))
