"""Pieces one after another: the rows of the uncut run, and a killed run goes on at the last finished piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from pipeline import api, open_run
from tests.e2e.clips import write_clip
from workers.gpu_worker import GpuWorker
from workers.units import UnitFolder

NUM_FRAMES = 40
PLAIN = ["prompts=[red circle, blue square]", "device.threads=1"]
CUT = ["chunk.mode=sequential", "chunk.length=0.8s"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "long.mp4", num_frames=NUM_FRAMES)


def rows(config: Config, clip: Path, run: Path, *, resume: bool = False) -> pa.Table:
    torch.set_num_threads(1)
    api.track_to_run(config, [str(clip)], run, resume=resume)
    return open_run(run).table()


TRACKERS = {"memory": [], "bytetrack": ["tracker.name=bytetrack"]}


@pytest.fixture(scope="module", params=sorted(TRACKERS))
def tracker(request: pytest.FixtureRequest) -> list[str]:
    return TRACKERS[request.param]


@pytest.fixture(scope="module")
def whole(clip: Path, tracker: list[str], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return rows(load_config(None, [*PLAIN, *tracker]), clip, tmp_path_factory.mktemp("whole") / "run")


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of the attempt is committed or tidied up any more."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The process dies in the middle of the third piece, and leaves its unfinished folder behind."""
    begin = GpuWorker.begin

    def dies(self: GpuWorker, *args: object) -> object:
        state = begin(self, *args)  # type: ignore[arg-type]
        step = state.tracker.step

        def stepping(frame, detections):  # type: ignore[no-untyped-def]
            if frame.index == 21:
                raise KilledError
            return step(frame, detections)

        state.tracker.step = stepping  # type: ignore[method-assign]
        return state

    with monkeypatch.context() as patch:
        patch.setattr(GpuWorker, "begin", dies)
        patch.setattr(UnitFolder, "discard", lambda _: None)
        yield patch


def test_pieces_in_sequence_equal_the_uncut_run(
    clip: Path, tmp_path: Path, tracker: list[str], whole: pa.Table
) -> None:
    cut = rows(load_config(None, [*PLAIN, *CUT, *tracker]), clip, tmp_path / "cut")
    assert len(whole) > NUM_FRAMES
    assert cut.equals(whole)
    assert not (tmp_path / "cut" / ".units").exists()
    assert len(open_run(tmp_path / "cut").parts("long")) > 3


def test_a_killed_run_goes_on_at_the_last_finished_piece(
    clip: Path,
    tmp_path: Path,
    tracker: list[str],
    whole: pa.Table,
    kill: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, run = load_config(None, [*PLAIN, *CUT, *tracker]), tmp_path / "run"
    with pytest.raises(KilledError):
        rows(config, clip, run)
    kill.undo()
    done: list[int] = []
    follow = GpuWorker.follow

    def counted(self, frames, *more):  # type: ignore[no-untyped-def]
        return follow(self, (done.append(f.index) or f for f in frames), *more)  # type: ignore[func-returns-value]

    monkeypatch.setattr(GpuWorker, "follow", counted)
    resumed = rows(config, clip, run, resume=True)
    assert done == list(range(16, NUM_FRAMES))
    assert resumed.equals(whole)
    entry = open_run(run).video()
    assert (entry.status, entry.num_tracked) == ("done", NUM_FRAMES)
