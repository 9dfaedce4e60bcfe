"""Full disks, sources that change or vanish, other detections: each costs its video, is said in words, and is undone.

Scripted detections and ByteTrack: the whole product but the networks.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmarks.chunk_world import World, write_detections
from configs.load import load_config
from configs.schema import Config
from pipeline import api, open_run
from pipeline.cli import app
from pipeline.errors import UsageError
from pipeline.job import Silent
from pipeline.store import Manifest, VideoEntry

NUM_FRAMES = 60
PHRASES = "prompts=[red circle, blue square]"
CHUNKED = ["chunk.length=1s", "chunk.overlap=0.4s"]


@pytest.fixture(scope="module")
def world() -> World:
    return World(3, NUM_FRAMES, [25])


@pytest.fixture
def clip(tmp_path: Path, world: World) -> Path:
    return world.write_video(tmp_path / "a.mp4")


def config(world: World, folder: Path, more: tuple[str, ...] | list[str] = ()) -> Config:
    found = folder / "found.parquet"
    if not found.exists():
        write_detections(world, "x", folder / "found")
        table = pq.read_table(folder / "found" / "part-00000.parquet").drop_columns(["video_id"])
        pq.write_table(table, found)
    sets = [PHRASES, f"detector.detections={found}", "tracker.name=bytetrack", "output.frames_per_part=10"]
    return load_config(None, [*sets, *more])


def full_disk(when: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are chosen by their name are half written when the disk is full."""
    fsync = os.fsync

    def fails(fd: int) -> None:
        if when(os.readlink(f"/proc/self/fd/{fd}")):
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.parametrize(
    ("chunked", "victim"),
    [([], "part-00003"), (CHUNKED, "part-00001"), (CHUNKED, ".a.stitching")],
    ids=["whole", "piece", "stitching"],
)
def test_a_full_disk_costs_its_video_and_resuming_completes(
    clip: Path, tmp_path: Path, world: World, chunked: list[str], victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(world, tmp_path, chunked)
    api.track_to_run(settings, [str(clip)], tmp_path / "want")
    with monkeypatch.context() as patch:
        full_disk(lambda name: victim in name, patch)
        options = [f"--set={s}" for s in chunked]
        (tmp_path / "c.yaml").write_text((tmp_path / "want" / "config.yaml").read_text())
        result = CliRunner().invoke(
            app, ["track", str(clip), "--config", str(tmp_path / "c.yaml"), *options, "-o", str(tmp_path / "run")]
        )
    assert result.exit_code == 1, result.output
    (entry,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["videos"]
    assert entry["status"] == "failed"
    assert entry["error"].startswith("cannot write: No space left on device")
    assert "\n" not in entry["error"]
    assert not list((tmp_path / "run" / "masklets").iterdir())
    assert not list(tmp_path.rglob("*.tmp"))
    manifest = api.track_to_run(settings, [str(clip)], tmp_path / "run", resume=True)
    assert manifest.videos[0].status == "done"
    assert open_run(tmp_path / "run").table().equals(open_run(tmp_path / "want").table())
    assert not (tmp_path / "run" / ".units").exists()


def test_no_room_for_the_manifest_is_one_line(
    clip: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(world, tmp_path)
    api.track_to_run(settings, [str(clip)], tmp_path / "want")
    full_disk(lambda name: "manifest.json" in name, monkeypatch)
    result = CliRunner().invoke(
        app, ["track", str(clip), "--config", str(tmp_path / "want" / "config.yaml"), "-o", str(tmp_path / "run")]
    )
    assert result.exit_code == 2
    assert "error: cannot write: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


@dataclass(frozen=True)
class Meddler(Silent):
    """Changes the sources of a job after its first video."""

    todo: list[Callable[[], None]]

    def video_ended(self, entry: VideoEntry) -> None:
        while self.todo:
            self.todo.pop()()


def test_sources_that_change_or_vanish_fail_alone(tmp_path: Path, world: World) -> None:
    # Longest first: the one that starts has to be the largest.
    first = World(3, NUM_FRAMES + 20, [25]).write_video(tmp_path / "first.mp4")
    clips = {name: world.write_video(tmp_path / f"{name}.mp4") for name in ("changed", "gone", "last")}
    last_bytes = clips["last"].read_bytes()

    def meddle() -> None:
        World(4, NUM_FRAMES, []).write_video(clips["changed"])
        clips["gone"].unlink()

    sources = [str(first), *map(str, clips.values())]
    settings = config(world, tmp_path)
    manifest = api.track_to_run(settings, sources, tmp_path / "run", listener=Meddler([meddle]))
    by_id = {v.video_id: v for v in manifest.videos}
    assert {k: v.status for k, v in by_id.items()} == {
        "first": "done",
        "changed": "failed",
        "gone": "failed",
        "last": "done",
    }
    assert "changed while the job ran" in (by_id["changed"].error or "")
    assert "no such file" in (by_id["gone"].error or "").lower()
    assert clips["last"].read_bytes() == last_bytes
    again = api.track_to_run(settings, sources, tmp_path / "run", resume=True)
    assert {v.video_id: v.status for v in again.videos} == {
        "first": "done",
        "changed": "done",
        "gone": "failed",
        "last": "done",
    }


def test_a_finished_video_is_tracked_again_if_its_source_changed(
    clip: Path, tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    settings, run = config(world, tmp_path), tmp_path / "run"
    api.track_to_run(settings, [str(clip)], run)
    before = (run / "manifest.json").read_text()
    World(5, NUM_FRAMES - 10, []).write_video(clip)
    manifest: Manifest = api.track_to_run(settings, [str(clip)], run, resume=True)
    assert manifest.videos[0].num_tracked == NUM_FRAMES - 10
    assert "a: the source changed since it was tracked" in caplog.text
    assert (run / "manifest.json").read_text() != before
    clip.unlink()
    kept = api.track_to_run(settings, [str(clip), str(tmp_path / "found.mp4")], run, resume=True)
    assert kept.videos[0].status == "done"


def test_other_detections_are_another_plan(clip: Path, tmp_path: Path, world: World) -> None:
    settings, run = config(world, tmp_path), tmp_path / "run"
    api.track_to_run(settings, [str(clip)], run)
    found = tmp_path / "found.parquet"
    pq.write_table(pq.read_table(found).slice(5), found)
    with pytest.raises(UsageError, match="changed: detections"):
        api.track_to_run(settings, [str(clip)], run, resume=True)
