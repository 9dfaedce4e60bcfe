"""Cameras that were added from the page are there again after a restart, and their passwords lie in one place only."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.live import run as live_run
from pipeline.live.roster import Roster
from pipeline.live.run import StreamOptions
from pipeline.sources.live_open import CameraSpec
from tests.live.running import NO_MODEL, fake_models, live

SECRET = "rtsp://admin:hunter2@127.0.0.1:9/cam0"


def test_what_is_kept_and_who_may_read_it(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "state")
    assert roster.cameras() == []
    roster.add(CameraSpec("a", SECRET), ["cup"])
    roster.add(CameraSpec("b", "rtsp://127.0.0.1/b"), ["pen", "hat"])
    roster.remove("b")
    assert Roster(tmp_path / "state").cameras() == [(CameraSpec("a", SECRET), ["cup"])]
    [path] = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        roster.cameras()
    assert Roster(None).cameras() == []


def test_an_added_camera_survives_a_restart(tmp_path: Path) -> None:
    config = live().model_copy(update={"detector": live().detector.model_copy(update={"detections": NO_MODEL})})
    out = tmp_path / "run"

    def service(resume: bool) -> live_run.StreamService:
        options = StreamOptions(out=out, resume=resume, serve="127.0.0.1:0")
        return live_run._service(config, options, [], fake_models())

    def work(made: live_run.StreamService, is_first: bool) -> list[str]:
        stop = threading.Event()
        loop = threading.Thread(target=made.run, args=(stop,), kwargs={"until_ended": False})
        loop.start()
        try:
            if is_first:
                made.request_camera(SECRET, ["red disc"])
                gone = made.request_camera("rtsp://127.0.0.1:9/cam1", ["red disc"])
                made.request_removal(gone.stream_id)
            return made.stream_ids()
        finally:
            stop.set()
            loop.join()
            made.close(interrupted=True)

    ids = work(service(False), True)
    assert ids == ["127.0.0.1-9-cam0"]
    assert work(service(True), False) == ids
    holding = [p for p in out.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert [p.name for p in holding] == ["cameras.json"]
