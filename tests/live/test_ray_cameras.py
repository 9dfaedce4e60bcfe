"""Cameras on Ray: the rows of a local stream, and a worker that is killed goes on with the same ids."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.live import run as live_run
from pipeline.live.run import StreamOptions, run_stream
from pipeline.sources.live_open import parse_cameras
from pipeline.store import open_run
from tests.live.running import NO_MODEL, fake_models, live, load_fakes
from tests.live.servers import wait_for
from tests.live.test_sources import write_video
from tests.live.test_stream import rows_of

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.timeout(600),
    # Ray leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FAKE = live(checkpoint_every_s=1.0, latency_frames=3, max_gap_s=60.0).model_copy(
    update={"detector": live().detector.model_copy(update={"detections": NO_MODEL})}
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from workers.ray_session import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # cameras do not wait, and a busy machine starves what is nice
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # workers import the fakes
        session = connect("local", num_cpus=4)
    yield
    session.close()


@pytest.mark.usefixtures("cluster")
def test_rows_are_those_of_a_local_stream(tmp_path: Path) -> None:
    urls = tuple(str(write_video(tmp_path / f"{name}.mp4", num_frames=15)) for name in "abc")
    options = StreamOptions(urls=urls, out=tmp_path / "ray", ray="local", workers=2, load=load_fakes)
    assert run_stream(FAKE, options) == 0
    assert run_stream(FAKE, StreamOptions(urls=urls, out=tmp_path / "local"), fake_models()) == 0
    remote, local = open_run(tmp_path / "ray"), open_run(tmp_path / "local")
    assert local.table().num_rows > 15
    for name in "abc":
        assert remote.table(name).equals(local.table(name))
    assert {v.video_id: v.status for v in remote.videos} == dict.fromkeys("abc", "done")


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_goes_on_with_the_same_ids(tmp_path: Path) -> None:
    out, jsonl = tmp_path / "run", tmp_path / "rows.jsonl"
    urls = [str(write_video(tmp_path / f"{name}.mp4", num_frames=200, fps=10)) for name in "ab"]
    options = StreamOptions(
        urls=tuple(urls), sinks=(f"jsonl:{jsonl}",), out=out, realtime=True, ray="local", workers=2, load=load_fakes
    )
    service = live_run._remote(FAKE, options, parse_cameras(urls, realtime=True))
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,), kwargs={"until_ended": False})
    thread.start()
    try:
        assert wait_for(lambda: all((out / "state" / n / "current.json").exists() for n in "ab"), 150)
        os.kill(service._groups.pid(0), signal.SIGKILL)  # type: ignore[attr-defined]
        killed_s = time.time()
        assert wait_for(
            lambda: sum(r.get("video_id") == "a" and r["wall_s"] > killed_s + 1 for r in rows_of(jsonl)) > 20, 120
        )
    finally:
        stop.set()
        thread.join(10)
        service.close(interrupted=False)
    lines = rows_of(jsonl)
    rows = [r for r in lines if r["type"] == "masklet"]
    assert {r["masklet_id"] for r in rows if r["video_id"] == "a"} == {1, 2}
    keys = [(r["video_id"], r["frame"], r["masklet_id"]) for r in rows]
    assert len(set(keys)) == len(keys)
    gaps = [r for r in lines if r["type"] == "event" and r["kind"] == "stream_gap"]
    assert {g["stream_id"] for g in gaps} == {"a"}
    [gap] = gaps
    assert "worker was restarted" in str(gap["detail"])
    missing = re.search(r"frames (\d+)\.\.(\d+)", str(gap["detail"]))  # none if it died right after a save
    if missing is not None:
        # Frames per second, and a save on the way.
        assert int(missing[2]) - int(missing[1]) < 10 * FAKE.live.checkpoint_every_s + 15
    # The run folder has the same rows.
    run = open_run(out)
    table = run.table("a").to_pydict()
    kept = list(zip(table["frame"], table["masklet_id"], strict=True))
    assert kept == sorted((f, m) for v, f, m in keys if v == "a")
