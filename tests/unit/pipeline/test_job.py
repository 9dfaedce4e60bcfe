"""The coordinator: what it plans, publishes, keeps after an interruption and never does twice."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from configs.schema import Config
from pipeline.errors import RunInterruptedError, UsageError
from pipeline.job import Job, Silent
from pipeline.masks import boxes, encode
from pipeline.results import FrameResult
from pipeline.sources.file import VideoItem
from pipeline.store import Manifest, RunWriter, VideoWriter, open_run
from tests.e2e.clips import write_clip
from workers.units import Unit, UnitFolder, UnitProgress, UnitReport

SIZE = (60, 80)


def frame(video_id: str, index: int) -> FrameResult:
    """One square that moves a pixel a frame: the same whoever tracks it."""
    mask = np.zeros((1, *SIZE), bool)
    mask[0, 20:40, index % 50 : index % 50 + 20] = True
    return FrameResult(
        video_id,
        index,
        index / 10,
        SIZE,
        np.array([1], np.int32),
        ("cat",),
        np.ones(1, np.float32),
        boxes(mask),
        encode(mask),
    )


class FakeExecutor:
    """Does units with an invented tracker; remembers what it did, and can be interrupted in the middle."""

    num_workers = 1
    num_retries = 0

    def __init__(self, interrupt_in: str | None = None, fail: tuple[str, ...] = ()) -> None:
        self.done: list[tuple[str, int]] = []
        self._interrupt_in, self._fail = interrupt_in, fail

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        for unit in todo:
            if unit.video_id in self._fail:
                yield UnitReport(unit.key, unit.video_id, unit.ordinal, "failed", error="nothing in it")
                continue
            yield self._do(unit, units)

    def _do(self, unit: Unit, units: Path) -> UnitReport:
        start, stop = unit.start or 0, unit.stop or 30
        folder = UnitFolder(units, unit.key)
        report = UnitReport(
            unit.key, unit.video_id, unit.ordinal, "done", start, stop, *SIZE[::-1], "10/1", stop, stop - start, 1
        )
        with VideoWriter(folder.masklets) as writer:
            for index in range(start, stop):
                if unit.video_id == self._interrupt_in and index == start + 5:
                    report.error, report.status, report.num_tracked = "interrupted after 5 of 30 frames", "partial", 5
                    break
                writer.write(frame(unit.video_id, index))
        folder.commit(report)
        if report.status == "partial":
            raise KeyboardInterrupt
        self.done.append((unit.video_id, unit.ordinal))
        return report

    def close(self) -> None:
        pass


def job(folder: Path, executor: FakeExecutor, config: Config, *, resume: bool = False) -> Job:
    manifest = Manifest("0", {"fingerprint": "f"}, ["cat"], [], "d")
    return Job(config, RunWriter.create(folder, manifest, "", resume=resume), executor)


@pytest.fixture
def items(tmp_path: Path) -> list[VideoItem]:
    return [VideoItem(name, str(write_clip(tmp_path / f"{name}.mp4", num_frames=30, size=SIZE))) for name in "abc"]


def test_every_video_is_done_once_and_listed_in_its_order(tmp_path: Path, items: list[VideoItem]) -> None:
    executor = FakeExecutor()
    manifest = job(tmp_path / "run", executor, Config()).execute(items, Silent())
    assert [v.video_id for v in manifest.videos] == ["a", "b", "c"]
    assert sorted(executor.done) == [("a", 0), ("b", 0), ("c", 0)]
    assert manifest.status == "complete"
    assert not (tmp_path / "run" / ".units").exists()
    assert len(open_run(tmp_path / "run").table()) == 90


def test_a_failed_video_leaves_the_others_complete(tmp_path: Path, items: list[VideoItem]) -> None:
    manifest = job(tmp_path / "run", FakeExecutor(fail=("b",)), Config()).execute(items, Silent())
    assert [v.status for v in manifest.videos] == ["done", "failed", "done"]
    assert manifest.videos[1].error == "nothing in it"
    assert len(open_run(tmp_path / "run").table()) == 60


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, items: list[VideoItem]) -> None:
    job(tmp_path / "whole", FakeExecutor(), Config()).execute(items, Silent())
    with pytest.raises(RunInterruptedError) as error:
        job(tmp_path / "run", FakeExecutor(interrupt_in="b"), Config()).execute(items, Silent())
    assert error.value.exit_code == 130
    stopped = open_run(tmp_path / "run")
    assert stopped.manifest.status == "interrupted"
    assert stopped.video("b").status == "partial"
    assert len(stopped.table("b")) == 5
    executor = FakeExecutor()
    job(tmp_path / "run", executor, Config(), resume=True).execute(items, Silent())
    done_before = {v.video_id for v in stopped.videos if v.status == "done"}
    assert {v for v, _ in executor.done} == set("abc") - done_before
    assert open_run(tmp_path / "run").table().equals(open_run(tmp_path / "whole").table())


CHUNKED = ["chunk.length=1s", "chunk.overlap=0.4s"]


def test_chunks_are_stitched_and_resumed_by_the_piece(tmp_path: Path, items: list[VideoItem]) -> None:
    config = load_config(None, CHUNKED)
    job(tmp_path / "whole", FakeExecutor(), Config()).execute(items[:1], Silent())
    broken = FakeExecutor(fail=())
    first_two: list[Unit] = []

    class Dies(FakeExecutor):
        """Commits two pieces, then the process is gone: no report, no clean-up."""

        def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
            for unit in list(todo)[:2]:
                first_two.append(unit)
                self._do(unit, units)
            UnitFolder(units, "half-written").masklets.joinpath("part-00000.parquet").write_bytes(b"PAR1")
            raise RuntimeError("gone")
            yield

    with pytest.raises(RuntimeError):
        job(tmp_path / "run", Dies(), config).execute(items[:1], Silent())
    manifest = job(tmp_path / "run", broken, config, resume=True).execute(items[:1], Silent())
    assert {("a", u.ordinal) for u in first_two}.isdisjoint(broken.done)
    entry = manifest.videos[0]
    assert len(entry.chunks) == len(broken.done) + 2
    assert entry.num_tracked == 30
    assert all(link["confidence"] > 0.99 and not link["weak"] for link in entry.links)
    assert open_run(tmp_path / "run").table().equals(open_run(tmp_path / "whole").table())


def test_a_damaged_piece_is_done_again(tmp_path: Path, items: list[VideoItem]) -> None:
    config = load_config(None, CHUNKED)
    units = tmp_path / "run" / ".units"

    class DamagesThenDies(FakeExecutor):
        def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
            unit = next(iter(todo))
            self._do(unit, units)
            part = next((units / unit.key / "masklets").glob("*.parquet"))
            part.write_bytes(part.read_bytes()[:-9])
            raise RuntimeError("gone")
            yield

    with pytest.raises(RuntimeError):
        job(tmp_path / "run", DamagesThenDies(), config).execute(items[:1], Silent())
    assert any(units.iterdir())
    executor = FakeExecutor()
    manifest = job(tmp_path / "run", executor, config, resume=True).execute(items[:1], Silent())
    assert len(executor.done) == len(manifest.videos[0].chunks)


def test_a_source_that_changed_is_tracked_again(tmp_path: Path, items: list[VideoItem]) -> None:
    config = load_config(None, CHUNKED)

    class CommitsAllThenDies(FakeExecutor):
        def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
            for unit in list(todo)[:-1]:
                self._do(unit, units)
            raise RuntimeError("gone")
            yield

    with pytest.raises(RuntimeError):
        job(tmp_path / "run", CommitsAllThenDies(), config).execute(items[:1], Silent())
    write_clip(Path(items[0].uri), num_frames=30, size=(64, 80))
    executor = FakeExecutor()
    manifest = job(tmp_path / "run", executor, config, resume=True).execute(items[:1], Silent())
    assert len(executor.done) == len(manifest.videos[0].chunks)


def test_another_plan_is_refused(tmp_path: Path, items: list[VideoItem]) -> None:
    job(tmp_path / "run", FakeExecutor(), Config()).execute(items, Silent())
    manifest = Manifest("0", {"fingerprint": "other"}, ["cat"], [], "d")
    with pytest.raises(UsageError, match="model weights"):
        RunWriter.create(tmp_path / "run", manifest, "", resume=True)
