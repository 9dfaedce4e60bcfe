"""Frames, masklets and events are numbered once: after restarts, removals and failures, here and in other processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from configs.schema import Config
from pipeline.live.group import GroupCamera, GroupSpec
from pipeline.live.remote import RemoteService
from pipeline.live.run import StreamOptions, run_stream
from pipeline.live.sinks import open_sinks
from pipeline.sources.live_open import parse_cameras
from tests.live.local_groups import LocalGroups
from tests.live.running import NO_MODEL, PHRASES, Running, fake_models, live, load_fakes
from tests.live.servers import RtspProcess, wait_for

Row = dict[str, Any]


def config(**values: Any) -> Config:
    detector = live().detector.model_copy(update={"detections": NO_MODEL})
    return live(**values).model_copy(update={"detector": detector})


def lines(path: Path) -> list[Row]:
    text = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("\n")]


def rows(path: Path) -> list[Row]:
    return [r for r in lines(path) if r["type"] == "masklet"]


def check_numbers(path: Path) -> None:
    """No row and no event has the name of another, and frames rise."""
    keys = [(r["video_id"], r["frame"], r["masklet_id"]) for r in rows(path)]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    events = [r["event_id"] for r in lines(path) if r["type"] == "event"]
    assert len(set(events)) == len(events)
    of: dict[int, set[tuple[str, int]]] = {}
    for row in rows(path):
        of.setdefault(row["masklet_id"], set()).add((row["prompt"], row["session"]))
    assert all(len(things) == 1 for things in of.values())


@contextmanager
def followed(settings: Config, options: StreamOptions) -> Iterator[list[int]]:
    """A stream in a thread; ends with the block, or by itself."""
    stop, codes = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: codes.append(run_stream(settings, options, fake_models(), stop)))
    thread.start()
    try:
        yield codes
    finally:
        stop.set()
        thread.join(30)


def more(path: Path, count: int = 20) -> Callable[[], bool]:
    wanted = len(rows(path)) + count
    return lambda: len(rows(path)) >= wanted


def test_a_sink_without_a_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "rows.jsonl", tmp_path / "kept"
    with RtspProcess() as camera:
        options = StreamOptions(urls=(camera.url(),), sinks=(f"parquet:{parquet}", f"jsonl:{jsonl}"))
        for _ in range(2):
            with followed(config(), options):
                assert wait_for(more(jsonl), 30)
    check_numbers(jsonl)
    table = pq.read_table(parquet / "masklets")
    kept = list(zip(table["frame"].to_pylist(), table["masklet_id"].to_pylist(), strict=True))
    assert kept == [(r["frame"], r["masklet_id"]) for r in rows(jsonl)]
    assert {r["masklet_id"] for r in rows(jsonl)} == {1, 2, 3, 4}
    assert {r["session"] for r in rows(jsonl)} == {0, 1}


def test_a_camera_that_is_taken_off_and_added_again(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "rows.jsonl", tmp_path / "kept"
    outlets = open_sinks([f"parquet:{parquet}", f"jsonl:{jsonl}"], capacity=500, segment_s=60, rows_per_part=1000)
    with RtspProcess() as camera, Running([camera.url()], live(), outlets=outlets) as running:
        assert wait_for(more(jsonl), 30)
        [name] = running.service.stream_ids()
        running.service.request_removal(name)
        assert running.service.request_camera(camera.url(), PHRASES).stream_id == name
        assert wait_for(lambda: any(r["masklet_id"] > 2 for r in rows(jsonl)), 30)
        assert wait_for(more(jsonl), 30)
    check_numbers(jsonl)
    assert pq.read_table(parquet / "masklets").num_rows == len(rows(jsonl))


def test_a_camera_that_was_given_up_and_is_resumed(tmp_path: Path) -> None:
    jsonl, out = tmp_path / "rows.jsonl", tmp_path / "run"
    options = StreamOptions(sinks=(f"jsonl:{jsonl}",), out=out)
    with RtspProcess() as camera:
        mine = StreamOptions(urls=(camera.url(),), sinks=options.sinks, out=out)
        with followed(config(give_up_after_s=0.5), mine) as codes:
            assert wait_for(more(jsonl), 30)
            camera.kill()
            assert wait_for(lambda: codes == [1], 30)
        camera.start()
        again = StreamOptions(urls=(camera.url(),), sinks=options.sinks, out=out, resume=True)
        with followed(config(give_up_after_s=0.5), again):
            assert wait_for(more(jsonl), 30)
    check_numbers(jsonl)
    assert pq.read_table(out / "masklets").num_rows == len(rows(jsonl))


def test_groups_elsewhere_number_once_too(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "rows.jsonl", tmp_path / "kept"
    outlets = open_sinks([f"parquet:{parquet}", f"jsonl:{jsonl}"], capacity=500, segment_s=60, rows_per_part=1000)
    settings = config(checkpoint_every_s=0.5, max_gap_s=30)
    with RtspProcess(cameras=2) as camera:
        specs = [
            GroupSpec(settings, tuple(GroupCamera(s) for s in parse_cameras([camera.url(k)])), tmp_path / "state")
            for k in range(2)
        ]
        specs = [GroupSpec(s.config, s.cameras, s.state, load=load_fakes) for s in specs]
        service = RemoteService(settings, LocalGroups(), specs, outlets)
        stop = threading.Event()
        thread = threading.Thread(target=service.run, args=(stop,), kwargs={"until_ended": False})
        thread.start()
        try:
            assert wait_for(more(jsonl), 30)
            name = service.stream_ids()[0]
            service.request_removal(name)
            assert service.request_camera(camera.url(0), PHRASES).stream_id == name
            assert wait_for(lambda: any(r["masklet_id"] > 2 and r["video_id"] == name for r in rows(jsonl)), 30)
            assert wait_for(more(jsonl), 30)
        finally:
            stop.set()
            thread.join(10)
            service.close(interrupted=False)
    for stream_id in {r["video_id"] for r in rows(jsonl)}:
        mine = tmp_path / f"{stream_id}.jsonl"
        kept = [r for r in lines(jsonl) if stream_id in (r.get("video_id"), r.get("stream_id"))]
        mine.write_text("".join(json.dumps(r) + "\n" for r in kept))
        check_numbers(mine)
    assert service.num_repeated == 0
    assert pq.read_table(parquet / "masklets").num_rows == len(rows(jsonl))


def test_a_group_that_dies_goes_on_with_its_ids(tmp_path: Path) -> None:
    jsonl = tmp_path / "rows.jsonl"
    outlets = open_sinks([f"jsonl:{jsonl}"], capacity=500, segment_s=60, rows_per_part=1000)
    settings = config(checkpoint_every_s=0.5, max_gap_s=60)
    with RtspProcess() as camera:
        cameras = tuple(GroupCamera(s) for s in parse_cameras([camera.url()]))
        groups = LocalGroups()
        spec = GroupSpec(settings, cameras, tmp_path / "state", load=load_fakes)
        service = RemoteService(settings, groups, [spec], outlets)
        stop = threading.Event()
        thread = threading.Thread(target=service.run, args=(stop,), kwargs={"until_ended": False})
        thread.start()
        try:
            assert wait_for(lambda: any(tmp_path.glob("state/*/current.json")), 30)
            assert wait_for(more(jsonl), 30)
            groups.kill(0)
            assert wait_for(more(jsonl, 30), 30)
        finally:
            stop.set()
            thread.join(10)
            service.close(interrupted=False)
    check_numbers(jsonl)
    assert {(r["session"], r["masklet_id"]) for r in rows(jsonl)} == {(0, 1), (0, 2)}
    details = [r["detail"] for r in lines(jsonl) if r.get("kind") == "stream_gap"]
    assert len(details) == 1
    assert "worker was restarted" in details[0]
