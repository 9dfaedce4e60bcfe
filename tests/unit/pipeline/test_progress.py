"""What a job says about itself while it runs and at its end."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from pipeline import report
from pipeline.console import LiveProgress, Output, Tally
from pipeline.store import Manifest, VideoEntry
from workers.units import Unit, UnitProgress, UnitReport


def unit(key: str, cost: float, video_id: str = "") -> Unit:
    return Unit(key, video_id or key, f"{key}.mp4", cost=cost)


def test_the_share_of_the_work_counts_costs_not_videos() -> None:
    tally = Tally()
    tally.plan(3, [unit("a", 900.0), unit("b", 100.0)])
    assert tally.share == 0.0
    tally.progress(UnitProgress("a", "a", 50, 100, 1, "detect"))
    assert tally.share == pytest.approx(0.45)
    tally.end("b")
    assert tally.share == pytest.approx(0.55)
    assert tally.note(10.0) == "5.0 frames/s, slowest: detect"
    tally.end("a")
    assert tally.share == 1.0
    assert tally.num_ended == 2


def test_a_unit_done_again_goes_back_and_a_video_waits_for_all_its_pieces() -> None:
    tally = Tally()
    tally.plan(1, [unit("a0", 1.0, "a"), unit("a1", 1.0, "a")])
    tally.progress(UnitProgress("a0", "a", 10, 10, 1))
    tally.progress(UnitProgress("a1", "a", 8, 10, 1))
    tally.progress(UnitProgress("a1", "a", 0, 10, 0))
    assert tally.share == pytest.approx(0.5)


def test_the_pieces_of_a_video_are_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with LiveProgress(Output(as_json=False)) as progress:
        progress.planned(2, [unit("a0", 30.0, "a"), unit("a1", 30.0, "a"), unit("a2", 60.0, "a"), unit("b", 60.0)])
        progress.progress(UnitProgress("a0", "a", 30, 30, 1))
        progress.unit_ended(UnitReport("a0", "a", 0, "done", num_tracked=30))
        progress.progress(UnitProgress("a1", "a", 15, 30, 2))
        progress.progress(UnitProgress("a2", "a", 0, 60, 3))
        progress.progress(UnitProgress("b", "b", 20, 60, 1))
        bars = {task.description: task for task in progress._bars.tasks}
        assert sorted(bars) == ["0 of 2 videos", "a", "b"]
        assert bars["a"].completed == pytest.approx(45 / 120)
        assert bars["a"].fields["note"] == "45 frames, 1 of 3 pieces, 5 objects"
        assert bars["b"].fields["note"] == "20 of 60 frames, 1 object"
        progress.video_ended(VideoEntry("a", "a.mp4", "done"))
        assert "a" not in {task.description for task in progress._bars.tasks}


def test_units_of_unknown_cost_weigh_as_the_others() -> None:
    tally = Tally()
    tally.plan(3, [unit("a", 10.0), unit("b", 30.0), unit("remote", 0.0)])
    tally.end("remote")
    assert tally.share == pytest.approx(20 / 60)
    empty = Tally()
    empty.plan(2, [])
    assert empty.share == 1.0


def test_without_a_terminal_the_job_is_told_in_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveProgress, "_LOG_EVERY_S", -1.0)
    monkeypatch.setattr(logging.getLogger("masklet"), "propagate", True)
    with caplog.at_level(logging.INFO, "masklet"), LiveProgress(Output(as_json=False)) as progress:
        progress.planned(2, [unit("a", 1.0), unit("b", 1.0)])
        progress.progress(UnitProgress("a", "a", 5, 10, 2, "track"))
        progress.video_ended(VideoEntry("a", "a.mp4", "done"))
    text = caplog.text
    assert "a: 5 of 10 frames, 2 objects" in text
    assert "slowest: track" in text
    assert "0 of 2 videos, 25% of the work, about" in text
    assert "a: done" in text


def test_the_report_names_throughput_use_and_retries() -> None:
    manifest = Manifest("0", {}, [], [], "d")
    manifest.counts = {"workers": 2, "retries": 3, "session_frames": 500, "frames": 500, "videos": 2, "weak_links": 0}
    manifest.timings_s = {"total": 50.0, "busy": 80.0, "decode": 10.0, "detect": 40.0, "track": 25.0}
    assert report.utilisation(manifest) == {"decode": 0.1, "detect": 0.4, "track": 0.25, "idle": 0.2}
    console = Console(file=io.StringIO(), width=200)
    console.print(*report._job_lines(manifest))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 workers, 10.0 frames/s together over 50 s; decode 10%, detect 40%, track 25%, idle 20%" in text
    assert "3 attempt(s) failed and were repeated" in text
