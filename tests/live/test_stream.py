"""``masklet stream`` as a whole: the rows of a file as offline, files to their end, kills, Ctrl-C, refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from configs.load import load_config
from pipeline import api
from pipeline.errors import RunExistsError, SourceError, UsageError
from pipeline.live.build import live_config
from pipeline.live.events import Event, LiveResult
from pipeline.live.run import StreamOptions, run_stream, stream
from pipeline.store import open_run
from tests.live.running import NO_MODEL, fake_models, live
from tests.live.servers import RtspProcess, wait_for
from tests.live.test_sources import write_video


@pytest.mark.parametrize("tracker", ["sam3_memory", "bytetrack"])
def test_rows_at_latency_15_are_the_offline_rows(tmp_path: Path, tracker: str) -> None:
    # One frame per detector call in both: other batch sizes round scores differently in the sixth digit.
    torch.set_num_threads(1)
    path = write_video(tmp_path / "discs.mp4", num_frames=24, size=(144, 192))
    values = {"prompts": ["red circle", "blue circle"], "tracker": {"name": tracker, "new_object_score": 0.5}}
    values |= {"device": {"name": "cpu", "threads": 1}, "live": {"latency_frames": 15}, "detector": {"batch_frames": 1}}
    config = load_config("live", (), values)
    api.track_to_run(config, [str(path)], tmp_path / "offline")
    assert run_stream(config, StreamOptions(urls=(str(path),), out=tmp_path / "live")) == 0
    offline, streamed = open_run(tmp_path / "offline"), open_run(tmp_path / "live")
    assert offline.table().num_rows > 15
    assert streamed.table().equals(offline.table())
    entry = streamed.video()
    assert (entry.status, entry.num_frames, entry.num_tracked) == ("done", 24, 24)
    assert entry.num_masklets == offline.video().num_masklets


def test_latency_n_is_n_frames_of_hotstart() -> None:
    config = live_config(live(latency_frames=5))
    assert config.tracker.hotstart_delay_frames == 5
    assert config.tracker.hotstart_unmatched_frames == 5
    assert live_config(live(latency_frames=0)).tracker.hotstart_delay_frames == 15


def test_files_to_their_end_several_at_once_one_of_them_broken(tmp_path: Path) -> None:
    good = [write_video(tmp_path / f"{name}.mp4", num_frames=15) for name in "ab"]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing" * 100)
    options = StreamOptions(urls=(*map(str, good), str(bad)), out=tmp_path / "run")
    config = live().model_copy(update={"detector": live().detector.model_copy(update={"detections": NO_MODEL})})
    assert run_stream(config, options, fake_models()) == 1
    run = open_run(tmp_path / "run")
    assert {v.video_id: v.status for v in run.videos} == {"a": "done", "b": "done", "bad": "failed"}
    assert run.manifest.status == "complete"
    assert not list((tmp_path / "run" / "state").glob("*/current.json"))
    assert sorted(set(run.table("a")["frame"].to_pylist())) == list(range(15))


def test_nothing_readable_is_an_error_and_so_is_a_run_that_exists(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing" * 100)
    config = live()
    with pytest.raises(SourceError, match="nothing could be read"):
        run_stream(config, StreamOptions(urls=(str(bad),), sinks=(f"jsonl:{tmp_path}/x",)), fake_models())
    with pytest.raises(UsageError, match="no camera"):
        run_stream(config, StreamOptions(), fake_models())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    faked = config.model_copy(update={"detector": config.detector.model_copy(update={"detections": NO_MODEL})})
    with pytest.raises(RunExistsError):
        run_stream(faked, StreamOptions(urls=(str(bad),), out=tmp_path / "run"), fake_models())


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(url: str, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.live.stream_process", url, str(out), *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=40)
    return errors


def test_killed_and_interrupted_streams_go_on_with_the_same_ids(tmp_path: Path) -> None:
    out, jsonl = tmp_path / "run", tmp_path / "run.jsonl"
    with RtspProcess() as camera:
        url = camera.url(credentials="admin:hunter2@")
        first = start(url, out)
        assert wait_for(lambda: (out / "masklets").exists() and len(rows_of(jsonl)) > 24, 40)
        assert wait_for(lambda: any(out.glob("state/*/current.json")), 10)
        first.send_signal(signal.SIGKILL)
        logs = finish(first)
        before = rows_of(jsonl)
        second = start(url, out, "--resume")
        assert wait_for(lambda: len(rows_of(jsonl)) > len(before) + 24, 40)
        second.send_signal(signal.SIGINT)
        logs += finish(second)
        assert second.returncode == 130
    after = [r for r in rows_of(jsonl)[len(before) :] if r["type"] == "masklet"]
    old = [r for r in before if r["type"] == "masklet"]
    ids = {
        p: {r["masklet_id"] for r in rows if r["prompt"] == p} for rows in (after,) for p in ("red disc", "blue disc")
    }
    assert ids == {p: {r["masklet_id"] for r in old if r["prompt"] == p} for p in ids}
    gap = next(r for r in rows_of(jsonl)[len(before) :] if r["type"] == "event" and r["kind"] == "stream_gap")
    assert "worker was restarted" in str(gap["detail"])
    # The run folder: rows of both processes, in order, none twice; at most a checkpoint's worth is missing.
    table = pq.read_table(out / "masklets")
    keys = list(zip(table["frame"].to_pylist(), table["masklet_id"].to_pylist(), strict=True))
    assert keys == sorted(set(keys))
    handed_out = {(r["frame"], r["masklet_id"]) for r in rows_of(jsonl) if r["type"] == "masklet"}
    lost = handed_out - set(keys)
    assert len({frame for frame, _ in lost}) <= 10 * 1.0 + 10  # frames/s x checkpoint_every_s, and a commit on the way
    assert set(keys) <= handed_out
    run = open_run(out)
    assert run.manifest.status == "interrupted"
    assert run.videos[0].status == "partial"
    text = logs + (out / "manifest.json").read_text() + (out / "config.yaml").read_text() + jsonl.read_text()
    assert "hunter2" not in text
    assert pc.max(table["frame"]).as_py() < run.videos[0].num_frames


def test_a_broken_camera_does_not_slow_the_others(tmp_path: Path) -> None:
    stop = threading.Event()
    with RtspProcess(cameras=3, fps=5) as camera:
        urls = (*(camera.url(k) for k in range(3)), "rtsp://127.0.0.1:9/broken")
        options = StreamOptions(urls=urls, sinks=(f"jsonl:{tmp_path}/x.jsonl",))
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(run_stream(live(), options, fake_models(), stop)))
        thread.start()
        assert wait_for(lambda: len(rows_of(tmp_path / "x.jsonl")) > 30, 30)
        begin, start_s = rows_of(tmp_path / "x.jsonl"), time.time()
        time.sleep(4)
        rows = [r for r in rows_of(tmp_path / "x.jsonl")[len(begin) :] if r["type"] == "masklet"]
        seconds = time.time() - start_s
        stop.set()
        thread.join(20)
    frames = {v: len({r["frame"] for r in rows if r["video_id"] == v}) for v in {r["video_id"] for r in rows}}
    assert len(frames) == 3
    assert max(frames.values()) - min(frames.values()) <= 0.35 * max(frames.values())
    assert min(frames.values()) >= 0.5 * 5 * seconds


def test_stream_from_python_gives_frames_and_events(tmp_path: Path) -> None:
    path = write_video(tmp_path / "discs.mp4", num_frames=20, size=(144, 192))
    items = list(
        stream(str(path), ["red circle", "blue circle"], tracker="bytetrack", device="cpu", set=["device.threads=1"])
    )
    frames = [i.result.index for i in items if isinstance(i, LiveResult)]
    assert frames == list(range(20))
    assert {i.kind for i in items if isinstance(i, Event)} >= {"born", "confirmed", "ended"}
