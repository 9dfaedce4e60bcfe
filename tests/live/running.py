"""A whole service on fakes of the models: cameras, worker, page; in threads of the test."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pipeline.decode_resize  # noqa: F401 - torch, which takes its time: not with the first frame
from configs.schema import Config
from pipeline.live.board import Board
from pipeline.live.build import Models, linker_config, live_config
from pipeline.live.server import Address, serve
from pipeline.live.service import StreamService
from pipeline.live.sinks import Outlet
from pipeline.sources.live_open import parse_cameras
from tests.live.fakes import ColourDetector, NearestTracker, prompts_of
from workers.camera_worker import CameraWorker

PHRASES = ("red disc", "blue disc")
NO_MODEL = str(Path(__file__).with_name("fakes.py"))
"""As ``detector.detections``: a run then asks no checkpoint for its name."""


def fake_models() -> Models:
    """Models that see colours."""
    cache: dict[tuple[str, ...], Any] = {}

    def encode(phrases: Sequence[str]) -> Any:
        return cache.setdefault(tuple(phrases), prompts_of(phrases))

    return Models(ColourDetector(), lambda stream_id, session: NearestTracker(stream_id, session), encode)


def load_fakes(_: Config) -> Models:
    """The same, where models are loaded by a function."""
    return fake_models()


def live(**values: Any) -> Config:
    """A configuration with these live values."""
    quick = {"stall_timeout_s": 1.5, "open_timeout_s": 5.0, "backoff_cap_s": 0.5, "latency_frames": 0}
    return Config.model_validate({"prompts": PHRASES, "live": {**quick, **values}})


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Any

    def json(self) -> Any:
        return json.loads(self.body)


def service_of(
    urls: Sequence[str],
    config: Config,
    *,
    outlets: Sequence[Outlet] = (),
    board: Board | None = None,
    run: Any = None,
    realtime: bool = False,
) -> StreamService:
    """A service on fakes that nobody turns yet."""
    config, models = live_config(config), fake_models()
    worker = CameraWorker(
        models.detector, models.make_tracker, linker_config(config), batch_frames=4, max_gap_s=config.live.max_gap_s
    )
    service = StreamService(config, worker, models.encode, outlets, board=board, input_size=(96, 96), run=run)
    for spec in parse_cameras(urls, realtime=realtime):
        service.add_camera(spec, PHRASES)
    return service


class Running:
    """A running service. A context manager."""

    def __init__(
        self, urls: Sequence[str], config: Config, *, token: str | None = None, outlets: Sequence[Outlet] = ()
    ) -> None:
        self.config, self.board = live_config(config), Board()
        self.service = service_of(urls, config, outlets=outlets, board=self.board)
        self.detector = self.service.worker._detector
        self._token, self._stop, self._stack = token, threading.Event(), ExitStack()
        self.address: Address

    def __enter__(self) -> Running:
        self.address = self._stack.enter_context(serve(self.service, self.board, "127.0.0.1:0", self._token))
        thread = threading.Thread(target=self.service.run, args=(self._stop,), kwargs={"until_ended": False})
        thread.start()
        self._stack.callback(self.service.close, interrupted=True)
        self._stack.callback(thread.join, 10)
        self._stack.callback(self._stop.set)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def ask(self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request to the page."""
        data = json.dumps(body).encode() if body is not None else None
        sent = {**({"Content-Type": "application/json"} if data else {}), **(headers or {})}
        request = urllib.request.Request(self.address.url.rstrip("/") + path, data, sent, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=20) as answer:
                return Answer(answer.status, answer.read(), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), error.headers)

    def status(self) -> dict[str, Any]:
        """``GET /streams`` by id."""
        return {s["id"]: s for s in self.ask("/streams").json()["streams"]}
