"""Full disks, sinks that die or lag, workers that die: tracking goes on, and what was lost is counted."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RunError
from pipeline.live.board import Board
from pipeline.live.checkpoint import Marks
from pipeline.live.group import _CAPACITY_BYTES, Notebook, Relay, size_of
from pipeline.live.remote import _bereft
from pipeline.live.sink_parquet import EventWriter
from pipeline.live.sinks import Item, JsonlSink, Outlet, open_sinks
from pipeline.store import write_atomically
from tests.live.running import live, service_of
from tests.live.servers import wait_for
from tests.live.test_sinks import Stuck, event
from tests.live.test_sinks import live as result
from tests.live.test_sources import write_video


class Full(Notebook):
    """A run folder on a disk without room."""

    is_full = True

    def save(self) -> None:
        if self.is_full:
            raise RunError("cannot write: No space left on device", str(self.folder))


def test_a_full_disk_ends_no_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=60, fps=30)
    run = Full(tmp_path / "run")
    outlets = open_sinks([f"jsonl:{tmp_path}/rows.jsonl"], capacity=500, segment_s=60, rows_per_part=100)
    service = service_of([str(path)], live(checkpoint_every_s=0.02), outlets=outlets, run=run)
    saves: list[int] = []
    save = service.worker.save

    def failing(stream_id: str) -> Callable[[], None]:
        saves.append(1)
        if len(saves) % 2:
            raise ValueError("SafetensorError: Error while serializing: I/O error: No space left on device")
        return save(stream_id)

    service.worker.save = failing  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        service.run(threading.Event())
        service.close(interrupted=False)
    assert len(saves) > 1
    assert service.num_save_failures >= len(saves)
    assert sum("cannot be saved" in r.getMessage() for r in caplog.records) == 1
    assert outlets[0].num_lost == 0
    assert outlets[0].num_written >= 60


def test_saving_again_is_said_and_closing_on_a_full_disk_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Full(tmp_path / "run")
    service = service_of([], live(), run=run)
    with caplog.at_level(logging.WARNING):
        service._commit_state([])
        service._commit_state([])
        run.is_full = False
        service._commit_state([])
        run.is_full = True
        service.close(interrupted=True)
    messages = [r.getMessage() for r in caplog.records]
    assert [("again" in m) for m in messages] == [False, True, False]
    assert service.num_save_failures == 4


def test_a_state_without_its_rows_does_not_count(tmp_path: Path) -> None:
    class NoRoom(Stuck):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

        close = flush

    outlet = Outlet("full", NoRoom(), capacity=10)
    service = service_of([], live(checkpoint_every_s=0.05), outlets=[outlet], run=Notebook(tmp_path))
    committed: list[int] = []
    service._prepare = lambda: [lambda: committed.append(1)]  # type: ignore[method-assign, list-item]
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        service.turn()
    service.close(interrupted=True)
    assert committed == []


def test_marks_on_a_full_disk_are_kept_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    marks = Marks(tmp_path / "file" / "state")
    marks.update(5, 2, 1)
    for k in range(10):
        marks.note_births(0, {k: k})
    assert (marks.next_frame, marks.num_masklets) == (5, 2)
    assert marks.num_failures == 11
    assert len(caplog.records) == 1


def test_events_on_a_full_disk_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = EventWriter(tmp_path)
    monkeypatch.setattr(EventWriter, "_PER_PART", 10)
    monkeypatch.setattr("pipeline.live.sink_parquet.write_atomically", full)
    for k in range(30):
        try:
            writer.add(event(k))
        except OSError:
            continue
    assert len(writer._events) == 10
    monkeypatch.setattr("pipeline.live.sink_parquet.write_atomically", write_atomically)
    writer.add(event(31))
    writer.commit()
    assert [pq.read_table(p).num_rows for p in sorted(tmp_path.glob("*"))] == [10, 1]


class Broken:
    """Stdout whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def gone_outlets(monkeypatch: pytest.MonkeyPatch, *more: str) -> list[Outlet]:
    monkeypatch.setattr(sys, "stdout", Broken())
    outlets = open_sinks(["jsonl:-", *more], capacity=10, segment_s=60, rows_per_part=100)
    outlets[0].put(event(0))
    assert wait_for(lambda: outlets[0].is_gone)
    outlets[0].put(event(1))
    assert wait_for(lambda: outlets[0].num_lost == 2)
    assert outlets[0].is_gone
    return outlets


def test_only_a_closed_stdout_that_nobody_else_follows_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = gone_outlets(monkeypatch)
    assert service_of([], live(), outlets=alone).is_unheard
    assert not service_of([], live(), outlets=alone, board=Board()).is_unheard
    others = gone_outlets(monkeypatch, f"jsonl:{tmp_path}/rows.jsonl")
    assert not service_of([], live(), outlets=others).is_unheard
    for outlet in (*alone, *others):
        outlet.close(5)


def test_a_receiver_that_breaks_the_connection_is_not_gone(tmp_path: Path) -> None:
    class Socket(Stuck):
        def write(self, items: Sequence[Item]) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    outlets = [Outlet("socket", Socket(), capacity=10), Outlet("file", JsonlSink(str(tmp_path / "x")), capacity=10)]
    outlets[0].put(event(0))
    assert wait_for(lambda: outlets[0].num_lost == 1)
    assert not outlets[0].is_gone
    assert outlets[0].error == "Broken pipe"
    for outlet in outlets:
        outlet.close(5)


class Slow(Stuck):
    """Takes one item at a time, and never catches up."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed_after: list[int] = []

    def write(self, items: Sequence[Item]) -> int:
        time.sleep(0.01)
        self.taken += items
        return 0

    def flush(self) -> None:
        self.flushed_after.append(len(self.taken))


def test_a_sink_that_is_always_behind_is_flushed_all_the_same() -> None:
    sink = Slow()
    outlet = Outlet("slow", sink, capacity=50, batch=1)
    stop = threading.Event()

    def feed() -> None:
        k = 0
        while not stop.is_set():
            outlet.put(event(k))
            k += 1
            time.sleep(0.001)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        assert wait_for(lambda: outlet.depth > 40)
        done = outlet.flush()
        assert done.wait(20)
        assert outlet.depth > 10
    finally:
        stop.set()
        thread.join(5)
        outlet.close(10)


def test_a_stuck_sink_gathers_no_flushes() -> None:
    sink = Stuck()
    outlet = Outlet("stuck", sink, capacity=10, batch=1)
    outlet.put(event(0))
    assert wait_for(lambda: outlet.depth == 0)
    waiting = []
    for k in range(100):
        outlet.put(event(k))
        waiting.append(outlet.flush())
    assert len(outlet._flushes) == 2
    sink.go.set()
    assert all(done.wait(10) for done in waiting)
    outlet.close(5)


def test_a_flush_that_fails_is_tried_again() -> None:
    class Once(Stuck):
        tries = 0

        def flush(self) -> None:
            self.tries += 1
            if self.tries == 1:
                raise OSError(28, "No space left on device")

    sink = Once()
    sink.go.set()
    outlet = Outlet("once", sink, capacity=10)
    outlet.put(event(0))
    assert outlet.flush().wait(10)
    assert sink.tries == 2
    outlet.close(5)


def test_a_bare_parquet_sink_is_readable_after_a_checkpoint(tmp_path: Path) -> None:
    outlets = open_sinks([f"parquet:{tmp_path}/kept"], capacity=50, segment_s=60, rows_per_part=1000)
    service = service_of([], live(checkpoint_every_s=0.05), outlets=outlets)
    outlets[0].put(result(0))

    def is_there() -> bool:
        service.turn()
        return any((tmp_path / "kept").glob("masklets/cam/part-*"))

    assert wait_for(is_there)
    assert pq.read_table(tmp_path / "kept" / "masklets").num_rows == 2
    service.close(interrupted=True)


def test_the_relay_of_a_group_is_bounded_in_bytes() -> None:
    relay = Relay(wants_pictures=True)
    big = result(0)
    object.__setattr__(big, "picture", np.zeros((1000, 1000, 3), np.uint8))
    for _ in range(200):
        relay.put(big)
    assert relay.depth * size_of(big) <= _CAPACITY_BYTES
    assert relay.num_lost == 200 - relay.depth
    taken, count = 0, 0
    while relay.depth:
        taken, items, _ = relay.take(taken, 0.0)
        count += len(items)
        assert sum(map(size_of, items)) < 40 << 20
    assert (taken, count) == (200, 200 - relay.num_lost)


def test_cameras_of_a_dead_worker_are_not_live() -> None:
    report: Any = service_report()
    after = _bereft(report)
    assert [s["state"] for s in after.statuses] == ["waiting"]
    assert "worker died" in after.statuses[0]["error"]
    assert after.statuses[0]["masklets"] == 7
    assert not after.is_over


def service_report() -> Any:
    from pipeline.live.group import Report

    status = {"id": "a", "state": "live", "error": "", "fps": 5.0, "waiting": 2, "masklets": 7}
    return Report(1, (), False, [status], [], {}, {}, 0, 0, True, False)
