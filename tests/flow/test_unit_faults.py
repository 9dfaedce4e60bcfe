"""What goes wrong in one video of a job in this process costs that video, is said in words, and can be repaired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from pipeline import api, decode, open_run
from pipeline.cli import app
from pipeline.errors import DeviceError, SourceError
from pipeline.results import FrameResult
from tests.flow.worlds import World, make_world
from workers.unit_worker import UnitWorker


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Shorter clips than those of the jobs that are killed."""
    return make_world(tmp_path_factory.mktemp("world") / "w", (10, 10, 90, 80))


def track(world: World, run: Path, *options: str) -> Result:
    fixed = ["--text", "disc", "--detections", str(world.folder / "detections"), "--tracker", "bytetrack"]
    return CliRunner().invoke(app, ["track", *(i.uri for i in world.items[2:]), *fixed, "-o", str(run), *options])


def entries(run: Path) -> dict[str, Any]:
    return {v["video_id"]: v for v in json.loads((run / "manifest.json").read_text())["videos"]}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nno interest"),
        RuntimeError("CUDA error: out of memory"),
        DeviceError("out of memory with one object at a time", "CUDA out of memory", "free the device, take less"),
    ],
)
@pytest.mark.parametrize("streams", [1, 2])
def test_a_device_out_of_memory_costs_its_video_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, streams: int
) -> None:
    follow = UnitWorker._follow

    def full(self: UnitWorker, table: Any, *arguments: Any) -> Iterator[FrameResult]:
        for result in follow(self, table, *arguments):
            yield result
            if table.stream_id == "v2":
                raise error

    with monkeypatch.context() as patch:
        patch.setattr(UnitWorker, "_follow", full)
        result = track(world, tmp_path / "run", "--set", f"worker.streams_per_device={streams}")
    assert result.exit_code == 1, result.output
    found = entries(tmp_path / "run")
    assert (found["v2"]["status"], found["v3"]["status"]) == ("failed", "done")
    assert found["v2"]["error"].startswith("out of memory")
    assert "free the device" in found["v2"]["error"]
    assert "\n" not in found["v2"]["error"]
    again = track(world, tmp_path / "run", "--resume", "--set", f"worker.streams_per_device={streams}")
    assert again.exit_code == 0, again.output
    rows = world.whole.filter([v in ("v2", "v3") for v in world.whole["video_id"].to_pylist()])
    assert open_run(tmp_path / "run").table().equals(rows)


@pytest.mark.parametrize("chunk", [(), ("--chunk", "1s", "--overlap", "0.4s")])
def test_a_video_that_ends_before_the_start_costs_itself(world: World, tmp_path: Path, chunk: tuple[str, ...]) -> None:
    result = track(world, tmp_path / "run", "--start", "85", *chunk)
    assert result.exit_code == 1, result.output
    found = entries(tmp_path / "run")
    assert [found[v]["status"] for v in ("v2", "v3")] == ["done", "failed"]
    assert "80 frames" in found["v3"]["error"]


def test_the_pieces_of_a_video_share_its_list_of_frames(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    probe = decode.probe

    def counting(uri: str, stream_id: str) -> decode.FrameTable:
        probed.append(stream_id)
        return probe(uri, stream_id)

    monkeypatch.setattr("pipeline.decode.probe", counting)  # the coordinator's own look is not counted
    options = ["--chunk", "1s", "--overlap", "0.4s"]
    assert track(world, tmp_path / "run", *options).exit_code == 0
    assert all(len(v["chunks"]) > 2 for v in entries(tmp_path / "run").values())
    assert probed == ["v2", "v3"]


def test_what_is_set_aside_leaves_a_log(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: UnitWorker, table: decode.FrameTable, *_: object) -> Iterator[FrameResult]:
        raise ZeroDivisionError("nobody foresaw this")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(UnitWorker, "_follow", broken)
        with pytest.raises(SourceError):
            api.track_to_run(world.config(), [world.items[3].uri], run)
    entry = entries(run)["v3"]
    (log,) = (run / "logs").iterdir()
    why = "set aside after 3 attempts: ZeroDivisionError: nobody foresaw this"
    assert entry["error"] == f"{why} (see logs/{log.name})"
    text = log.read_text()
    assert "attempt 3: process " in text
    assert text.count("Traceback (most recent call last)") == 3
    api.track_to_run(world.config(), [world.items[3].uri], run, overwrite=True)
    assert not (run / "logs").exists()


def test_a_lost_piece_is_exit_code_1_until_it_is_repaired(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, run = UnitWorker._follow, tmp_path / "run"
    options = ["--stop", "75", "--chunk", "1s", "--overlap", "0.4s"]

    def broken(self: UnitWorker, table: decode.FrameTable, start: int, *rest: Any) -> Iterator[FrameResult]:
        if table.stream_id == "v3" and start > 40:
            raise ZeroDivisionError("nobody foresaw this")
        return follow(self, table, start, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(UnitWorker, "_follow", broken)
        assert track(world, run, *options).exit_code == 1
    lost = entries(run)["v3"]
    assert lost["status"] == "partial"
    assert lost["missing"][-1][1] == 75
    assert track(world, run, *options, "--resume").exit_code == 0
    assert [(v["status"], v["missing"]) for v in entries(run).values()] == [("done", [])] * 2
