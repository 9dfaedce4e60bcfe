"""The coordinator: what it plans, publishes, keeps after an interruption and never does twice."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from configs.load import load_config
from configs.schema import Config
from pipeline.assemble import entry_of
from pipeline.errors import RunError, RunInterruptedError, UsageError
from pipeline.job import Job, Silent
from pipeline.masks import boxes, encode
from pipeline.results import FrameResult
from pipeline.sources.file import VideoItem
from pipeline.store import Manifest, RunWriter, VideoEntry, VideoWriter, has_more_to_do, open_run, read_manifest
from tests.e2e.clips import write_clip
from workers.units import Unit, UnitFolder, UnitProgress, UnitReport, committed, set_aside

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


def test_the_manifest_of_many_videos_is_not_written_after_each(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names them all: writing it takes longer the more there are, and time to work is left in between."""
    now = 0.0
    monkeypatch.setattr("pipeline.store.time.monotonic", lambda: now)
    saves: list[int] = []
    replace = os.replace

    def slow(a: Path, b: Path) -> None:
        nonlocal now
        if Path(b).name == "manifest.json":
            saves.append(len(read_manifest(tmp_path / "run").videos) if Path(b).exists() else 0)
            now += 1.0
        replace(a, b)

    class Working(FakeExecutor):
        def _do(self, unit: Unit, units: Path) -> UnitReport:
            nonlocal now
            now += 5.0
            return super()._do(unit, units)

    monkeypatch.setattr("pipeline.store.os.replace", slow)
    many = [VideoItem(f"v{n}", items[0].uri) for n in range(12)]
    manifest = job(tmp_path / "run", Working(), Config()).execute(many, Silent())
    assert len(manifest.videos) == 12 and manifest.counts["done"] == 12
    assert saves == [0, 0, 4, 8, 12], "at the start, every 20 seconds of 60, and at the end"
    assert open_run(tmp_path / "run").manifest.videos == manifest.videos


def test_what_a_killed_job_had_not_listed_yet_is_not_tracked_again(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path / "whole", FakeExecutor(), Config()).execute(items, Silent())

    class Killed(FakeExecutor):
        def _do(self, unit: Unit, units: Path) -> UnitReport:
            if len(self.done) == 2:
                raise SystemExit
            return super()._do(unit, units)

    monkeypatch.setattr("pipeline.store._PAUSE", float("inf"))
    first, second = Killed(), FakeExecutor()
    with pytest.raises(SystemExit):
        job(tmp_path / "run", first, Config()).execute(items, Silent())
    assert open_run(tmp_path / "run").manifest.videos == []
    job(tmp_path / "run", second, Config(), resume=True).execute(items, Silent())
    assert sorted(first.done + second.done) == [("a", 0), ("b", 0), ("c", 0)] and len(second.done) == 1
    assert open_run(tmp_path / "run").table().equals(open_run(tmp_path / "whole").table())
    assert not (tmp_path / "run" / ".units").exists()


def test_an_interrupted_job_lists_what_it_had_not_listed_yet_once(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store._PAUSE", float("inf"))
    ended: list[str] = []

    class Listening(Silent):
        def video_ended(self, entry: VideoEntry) -> None:
            ended.append(entry.video_id)

    executor = FakeExecutor(interrupt_in="c")
    with pytest.raises(RunInterruptedError):
        job(tmp_path / "run", executor, Config()).execute(items, Listening())
    assert sorted(ended) == sorted([*(v for v, _ in executor.done), "c"])
    stopped = open_run(tmp_path / "run").manifest
    assert {v.video_id for v in stopped.videos} == set(ended)
    kept = {report.video_id for report in map(_report_of, (tmp_path / "run" / ".units").iterdir()) if report}
    assert kept <= {"c"}, "what is listed and done needs its units no more"


def _report_of(folder: Path) -> UnitReport | None:
    return committed(folder.parent, folder.name)


@pytest.mark.parametrize("name", "abcdef")
def test_an_upload_that_is_interrupted_costs_no_work(
    name: str, tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video is published here, not yet there, and not in the manifest; others wait to be settled, in any order."""
    many = [VideoItem(f"{name}{n}", items[0].uri) for n in range(4)]

    class Slow:
        def __init__(self) -> None:
            self.videos: list[str] = []

        def put(self, path: Path) -> None:
            if path.parent.name == "masklets":
                self.videos.append(path.name)
                if len(self.videos) == 3:
                    monkeypatch.setattr("pipeline.store._PAUSE", 0.0)  # from here on every save is due
                    raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.store._PAUSE", float("inf"))
    first, second = FakeExecutor(), FakeExecutor()
    manifest = Manifest("0", {"fingerprint": "f"}, ["cat"], [], "d")
    writer = RunWriter.create(tmp_path / "run", manifest, "", twin=Slow())
    with pytest.raises(RunInterruptedError):
        Job(Config(), writer, first).execute(many, Silent())
    job(tmp_path / "run", second, Config(), resume=True).execute(many, Silent())
    assert len(first.done) == 3 and sorted(v for v, _ in first.done + second.done) == [v.video_id for v in many]


def test_an_error_of_the_job_itself_leaves_a_manifest_of_what_was_done(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeExecutor):
        def _do(self, unit: Unit, units: Path) -> UnitReport:
            if len(self.done) == 2:
                raise RunError("no such device")
            return super()._do(unit, units)

    monkeypatch.setattr("pipeline.store._PAUSE", float("inf"))
    with pytest.raises(RunError, match="no such device"):
        job(tmp_path / "run", Broken(), Config()).execute(items, Silent())
    assert len(open_run(tmp_path / "run").videos) == 2


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


class LosesPieces(FakeExecutor):
    """Sets aside the pieces with these numbers, each for a reason of its own."""

    def __init__(self, *ordinals: int) -> None:
        super().__init__()
        self._ordinals = ordinals

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        for unit in todo:
            if unit.ordinal in self._ordinals:
                yield set_aside(unit, "3 attempts", f"reason {unit.ordinal}")
            else:
                yield self._do(unit, units)


def test_a_piece_that_was_set_aside_is_listed_and_can_be_repaired(tmp_path: Path, items: list[VideoItem]) -> None:
    config, run = load_config(None, CHUNKED), tmp_path / "run"
    job(tmp_path / "whole", FakeExecutor(), Config()).execute(items[:2], Silent())
    (lost, _) = job(run, LosesPieces(1), config).execute(items[:2], Silent()).videos
    assert lost.status == "partial"
    ((start, stop),) = lost.missing
    assert 0 < start < stop <= 30
    assert lost.num_tracked == 30 - (stop - start)
    kept = open_run(run).table("a")["frame"].to_pylist()
    assert sorted({*kept, *range(start, stop)}) == list(range(30))
    assert not RunWriter(run, open_run(run).manifest).finished("a")
    repairs = FakeExecutor()
    manifest = job(run, repairs, config, resume=True).execute(items[:2], Silent())
    assert sorted(repairs.done) == [("a", 1), ("b", 1)]
    assert [(v.status, v.missing, v.error) for v in manifest.videos] == [("done", [], None)] * 2
    assert open_run(run).table().equals(open_run(tmp_path / "whole").table())
    assert not (run / ".units").exists()


def test_all_that_went_wrong_in_the_pieces_is_said_and_decides(tmp_path: Path, items: list[VideoItem]) -> None:
    run = tmp_path / "run"
    config = load_config(None, ["chunk.length=0.6s", "chunk.overlap=0.2s"])
    manifest = job(run, LosesPieces(0, 1, 3), config).execute(items[:1], Silent())
    (entry,) = manifest.videos
    assert [f"reason {i}" in (entry.error or "") for i in range(4)] == [True, True, False, True]
    assert len(entry.missing) == 2  # neighbours are one
    assert entry.missing[0][0] == 0
    reports = [
        UnitReport("k0", "v", 0, "partial", 0, 9, error="it ends early"),
        UnitReport("k1", "v", 1, "partial", 8, 20, error="interrupted after 3 of 12 frames"),
    ]
    assert has_more_to_do(entry_of(reports, "v.mp4"))


class Fails:
    """A twin that takes nothing whose name ends with ``victim``, until it is mended."""

    def __init__(self, victim: str) -> None:
        self.victim = victim

    def put(self, path: Path) -> None:
        if self.victim and path.as_posix().endswith(self.victim):
            raise RunError("cannot write: the bucket is full")


@pytest.mark.parametrize("sets", [[], CHUNKED], ids=["whole", "pieces"])
@pytest.mark.parametrize("victim", ["masklets/a", "manifest.json"])
def test_nothing_is_done_again_that_only_could_not_be_uploaded(
    tmp_path: Path, items: list[VideoItem], sets: list[str], victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, twin = load_config(None, sets), Fails("")
    manifest = Manifest("0", {"fingerprint": "f"}, ["cat"], [], "d")
    writer = RunWriter.create(tmp_path / "run", manifest, "", twin=twin)
    twin.victim = victim
    first = FakeExecutor()
    with pytest.raises(RunError, match="bucket is full"):
        Job(config, writer, first).execute(items[:1], Silent())
    assert first.done
    twin.victim = ""
    again = FakeExecutor()
    writer = RunWriter.create(tmp_path / "run", manifest, "", resume=True, twin=twin)
    done = Job(config, writer, again).execute(items[:1], Silent())
    assert [v.status for v in done.videos] == ["done"]
    assert set(again.done).isdisjoint(first.done)
    assert len(open_run(tmp_path / "run").table()) == 30


def test_units_of_videos_that_are_finished_do_not_pile_up(tmp_path: Path, items: list[VideoItem]) -> None:
    """A kill between manifest and clean-up leaves them."""
    units = tmp_path / "run" / ".units"
    job(tmp_path / "run", FakeExecutor(fail=("b",)), Config()).execute(items[:2], Silent())
    FakeExecutor()._do(Unit("left", "a", ""), units)
    job(tmp_path / "run", FakeExecutor(fail=("b",)), Config(), resume=True).execute(items[:2], Silent())
    assert not (units / "left").exists()


def test_an_interruption_while_a_resumed_job_is_planned_keeps_everything(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = load_config(None, CHUNKED), tmp_path / "run"
    job(run, LosesPieces(1), config).execute(items[:2], Silent())
    before = {p.name for p in (run / ".units").iterdir()}

    def interrupted(*_: object) -> list[Unit]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.job.plan_units", interrupted)
        with pytest.raises(RunInterruptedError):
            job(run, FakeExecutor(), config, resume=True).execute(items[:2], Silent())
    assert {p.name for p in (run / ".units").iterdir()} == before
    repairs = FakeExecutor()
    job(run, repairs, config, resume=True).execute(items[:2], Silent())
    assert sorted(repairs.done) == [("a", 1), ("b", 1)]


def test_a_file_that_cannot_be_read_fails_alone(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, mode: str) -> BinaryIO:
        if Path(path).stem == "b":
            raise PermissionError(13, "Permission denied")
        return open(path, mode)  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr("workers.units.open", denied, raising=False)
        manifest = job(tmp_path / "run", FakeExecutor(), Config()).execute(items, Silent())
    assert [v.status for v in manifest.videos] == ["done", "failed", "done"]
    assert "cannot be read: Permission denied" in (manifest.videos[1].error or "")
    job(tmp_path / "run", FakeExecutor(), Config(), resume=True).execute(items, Silent())
    with monkeypatch.context() as patch:  # its rows are right, whatever became of the file
        patch.setattr("workers.units.open", denied, raising=False)
        manifest = job(tmp_path / "run", FakeExecutor(), Config(), resume=True).execute(items, Silent())
    assert [v.status for v in manifest.videos] == ["done"] * 3


def test_the_manifest_tells_how_far_videos_under_way_are(
    tmp_path: Path, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job._TELL_EVERY_S", 0.0)
    monkeypatch.setattr("pipeline.store._PAUSE", 0.0)
    run = tmp_path / "run"
    seen: list[dict[str, dict[str, int]]] = []

    class Watching(FakeExecutor):
        def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
            for unit in todo:
                yield UnitProgress(unit.key, unit.video_id, 4, 30, 1)
                seen.append(open_run(run).manifest.running)
                yield self._do(unit, units)

    manifest = job(run, Watching(), load_config(None, CHUNKED)).execute(items[:1], Silent())
    count = len(manifest.videos[0].chunks)
    assert [(s["a"]["units_done"], s["a"]["units"]) for s in seen] == [(i, count) for i in range(count)]
    assert seen[0]["a"]["frames"] == 4
    assert open_run(run).manifest.running == {}
