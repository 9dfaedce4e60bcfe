"""The same rows on Ray, whatever dies on the way. One small local cluster for the whole module."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from configs.load import load_config
from pipeline import api, open_run
from pipeline.job import Job, Silent
from pipeline.sources.file import VideoItem
from pipeline.store import Manifest, RunWriter
from tests.e2e.clips import write_clip
from workers.units import Unit, UnitProgress, UnitReport

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.timeout(600),
    # Ray leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONFIG = load_config(None, ["prompts=[red circle]", "device.threads=1"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[VideoItem]:
    folder = tmp_path_factory.mktemp("clips")
    return [VideoItem(f"c{i}", str(write_clip(folder / f"c{i}.mp4", num_frames=14 + 4 * i))) for i in range(3)]


@pytest.fixture(scope="module")
def reference(clips: list[VideoItem], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("local") / "run"
    api.track_to_run(CONFIG, [c.uri for c in clips], folder)
    return open_run(folder).table()


class Killer:
    """Passes an executor's events on and kills the worker of a unit, the first few times it reports progress."""

    def __init__(self, executor: Any, kills: dict[str, int]) -> None:
        self.executor, self.kills = executor, kills

    @property
    def num_workers(self) -> int:
        return int(self.executor.num_workers)

    @property
    def num_retries(self) -> int:
        return int(self.executor.num_retries)

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        for event in self.executor.run(todo, units):
            if isinstance(event, UnitProgress) and self.kills.get(event.video_id, 0) > 0:
                self.kills[event.video_id] -= 1
                os.kill(self.executor.worker_pids()[event.key], signal.SIGKILL)
            yield event

    def close(self) -> None:
        self.executor.close()


def run_with_kills(
    folder: Path, clips: list[VideoItem], kills: dict[str, int], workers: int = 2
) -> tuple[Manifest, Killer]:
    killer = Killer(api.open_executor(CONFIG, clips, api.Placement("auto", workers)), kills)
    manifest = Manifest("0", {"fingerprint": "f"}, ["red circle"], [], "d")
    try:
        done = Job(CONFIG, RunWriter.create(folder, manifest, ""), killer).execute(clips, Silent())
    finally:
        killer.close()
    return done, killer


@pytest.mark.usefixtures("cluster")
def test_rows_equal_local_ones_and_a_killed_worker_costs_one_retry(
    clips: list[VideoItem], reference: pa.Table, tmp_path: Path
) -> None:
    manifest, killer = run_with_kills(tmp_path / "run", clips, {"c1": 1})
    assert [v.status for v in manifest.videos] == ["done"] * 3
    assert killer.executor.num_retries == 1
    assert open_run(tmp_path / "run").table().equals(reference)
