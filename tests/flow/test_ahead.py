"""Working ahead changes when things are computed and nothing else. On CUDA it is on; here it is switched on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from configs.load import load_config
from pipeline import api, open_run
from pipeline.detectors import sam3_litetext
from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
from pipeline.detectors.sam3_network import Sam3Network
from tests.e2e.clips import write_clip

PLAIN = ["prompts=[red circle, blue square]", "device.threads=1", "device.name=cpu", "tracker.hotstart_delay_frames=2"]
NUM_FRAMES = 30


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=NUM_FRAMES))


def switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Sam3LiteTextDetector.__init__

    def ahead(self: Sam3LiteTextDetector, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.looks_ahead = True

    monkeypatch.setattr(Sam3LiteTextDetector, "__init__", ahead)


def run(clips: Sequence[str], folder: Path, *more: str) -> pa.Table:
    torch.set_num_threads(1)
    api.track_to_run(load_config(None, [*PLAIN, *more]), clips, folder)
    return open_run(folder).table()


@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_a_video_has_the_same_rows_and_every_frame_is_encoded_once(
    mode: str, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run([clip], tmp_path / "in place", f"tracker.mode={mode}")
    switch_on(monkeypatch)
    encoded: list[int] = []
    waiting: list[bool] = []
    encoding, download = Sam3Network.encoding, sam3_litetext.download
    is_waiting = False

    def counting(self: Sam3Network, pixels: torch.Tensor) -> Any:
        encoded.append(len(pixels))
        waiting.append(is_waiting)
        return (yield from encoding(self, pixels))

    def noting(values: torch.Tensor, meanwhile: Any = None) -> Any:
        nonlocal is_waiting
        is_waiting = True
        try:
            return download(values, meanwhile)
        finally:
            is_waiting = False

    monkeypatch.setattr(Sam3Network, "encoding", counting)
    monkeypatch.setattr(sam3_litetext, "download", noting)
    found = run([clip], tmp_path / "ahead", f"tracker.mode={mode}")
    assert found.num_rows > NUM_FRAMES and found.equals(expected)
    assert sum(encoded) == NUM_FRAMES
    assert waiting == [False] + [True] * (len(encoded) - 1), "all but the first batch begin in somebody's wait"


def test_a_batch_that_fails_ahead_is_encoded_in_place(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run([clip], tmp_path / "in place")
    switch_on(monkeypatch)
    encoding, calls = Sam3Network.encoding, 0

    def failing_once(self: Sam3Network, pixels: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            next(encoding(self, pixels))
            yield
            raise ValueError("an error that nobody tries again for")
        return (yield from encoding(self, pixels))

    monkeypatch.setattr(Sam3Network, "encoding", failing_once)
    found = run([clip], tmp_path / "ahead")
    assert calls > 4 and found.equals(expected)
