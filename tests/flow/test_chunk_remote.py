"""Runs in object storage: the same files, each put once under its final name, and resumed from what stands there."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner, Result

from benchmarks.chunk_world import World, write_detections
from configs.load import load_config, to_yaml
from pipeline import api, open_run
from pipeline.cli import app
from pipeline.remote import RemoteFolder

URL = "memory://bucket/run"
NUM_FRAMES = 40


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MemoryFileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.remote._PAUSES_S", (0.0, 0.0))
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    worlds = {name: World(seed, NUM_FRAMES, [18]) for seed, name in enumerate("ab")}
    rows = pq.read_table(write_detections(worlds["a"], "a", tmp_path / "found") / "part-00000.parquet")
    found = tmp_path / "found.parquet"
    pq.write_table(rows.drop_columns(["video_id"]), found)
    sets = ["prompts=[red circle, blue square]", f"detector.detections={found}", "tracker.name=bytetrack"]
    (tmp_path / "c.yaml").write_text(to_yaml(load_config(None, sets)))
    return [str(world.write_video(tmp_path / f"{name}.mp4")) for name, world in worlds.items()]


def track(sources: list[str], tmp_path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["track", *sources, "--config", str(tmp_path / "c.yaml"), "-o", URL, *options])


def contents(files: MemoryFileSystem) -> dict[str, bytes]:
    return {k.removeprefix("/bucket/run/"): files.cat_file(k) for k in files.find("/bucket/run")}


def test_a_run_in_object_storage_holds_what_a_local_one_does(
    store: MemoryFileSystem, sources: list[str], tmp_path: Path
) -> None:
    result = track(sources, tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["run"] == URL
    assert sorted(contents(store)) == [
        "config.yaml",
        "manifest.json",
        "masklets/a/part-00000.parquet",
        "masklets/b/part-00000.parquet",
    ]
    store.get("/bucket/run", str(tmp_path / "copy"), recursive=True)
    copied = next(p.parent for p in (tmp_path / "copy").rglob("manifest.json"))
    api.track_to_run(load_config(str(tmp_path / "c.yaml")), sources, tmp_path / "local")
    assert open_run(copied).table().equals(open_run(tmp_path / "local").table())
    assert not any((tmp_path / "cache" / "masklet" / "spool").iterdir())
    refused = track(sources, tmp_path)
    assert refused.exit_code == 2
    assert "the run exists (memory://bucket/run)" in refused.stderr
    store.pipe_file("/bucket/run/masklets/a/part-00007.parquet", b"stale")
    assert track(sources[:1], tmp_path, "--overwrite").exit_code == 0
    assert sorted(contents(store)) == ["config.yaml", "manifest.json", "masklets/a/part-00000.parquet"]


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_store_that_fails_in_between_is_resumed_from(
    store: MemoryFileSystem,
    sources: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_machine: bool,
) -> None:
    put = MemoryFileSystem.put_file

    def failing(self: MemoryFileSystem, local: str, key: str, **options: object) -> None:
        if "masklets/b" in key:
            raise OSError("the bucket is full")
        put(self, local, key, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", failing)
        failed = track(sources, tmp_path)
    assert failed.exit_code == 2, failed.output
    assert "error: cannot write: the bucket is full (memory://bucket/run): check" in failed.stderr
    stands = contents(store)
    listed = {v["video_id"] for v in json.loads(stands["manifest.json"])["videos"]}
    assert {n.split("/")[1] for n in stands if n.startswith("masklets/")} == listed
    if not same_machine:
        shutil.rmtree(tmp_path / "cache")
    assert track(sources, tmp_path, "--resume").exit_code == 0
    assert json.loads(contents(store)["manifest.json"])["status"] == "complete"
    api.track_to_run(load_config(str(tmp_path / "c.yaml")), sources, tmp_path / "local")
    for video_id in "ab":
        name = f"masklets/{video_id}/part-00000.parquet"
        assert contents(store)[name] == (tmp_path / "local" / name).read_bytes()


def test_a_store_that_refuses_now_and_then_is_asked_again(
    store: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: Counter[str] = Counter()

    def flaky(
        self: MemoryFileSystem, key: str, *arguments: str, real: Callable[..., object], **options: object
    ) -> None:
        tries[key] += 1
        if tries[key] % 3:
            raise OSError("503 slow down")
        real(self, key, *arguments, **options)

    for name in ("put_file", "rm_file"):
        real = getattr(MemoryFileSystem, name)
        monkeypatch.setattr(MemoryFileSystem, name, partialmethod(flaky, real=real))
    spool = tmp_path / "spool"
    (spool / "rows").mkdir(parents=True)
    (spool / "rows" / "a").write_text("a")
    folder = RemoteFolder(URL, spool)
    folder.put(spool / "rows")
    assert sorted(contents(store)) == ["rows/a"]
    (spool / "rows" / "a").unlink()
    folder.put(spool / "rows")
    assert contents(store) == {}
    assert set(tries.values()) == {3}


def test_an_address_nobody_knows_is_a_usage_error(sources: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["track", *sources, "--text", "x", "-o", "nosuch://bucket/run"])
    assert result.exit_code == 2
    assert "error: no driver for nosuch:// (nosuch://bucket/run)" in result.stderr
