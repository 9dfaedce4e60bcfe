"""``masklet stream`` as a function: options to parts, parts to a running service, its end to an exit code."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from configs.load import digest, load_config, to_yaml
from configs.schema import Config
from pipeline.api import encode_prompts, masklet_version, model_identity, option_values, parse_box
from pipeline.errors import RunInterruptedError, UsageError
from pipeline.live.board import Board
from pipeline.live.events import Event, LiveResult
from pipeline.live.exemplars import PLACEHOLDER, Exemplars
from pipeline.live.linker import LinkerConfig
from pipeline.live.server import serve
from pipeline.live.service import StreamService, all_failed
from pipeline.live.sinks import Outlet, open_sinks
from pipeline.sources.live import State, read_frames
from pipeline.sources.live_open import CameraSpec, parse_cameras
from pipeline.store import Manifest, RunWriter
from pipeline.types import Detector, Prompts, Tracker
from trackers import TRACKERS
from workers.camera_worker import CameraWorker

LOGGER = logging.getLogger("masklet.live")


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What ``masklet stream`` was asked to do, besides the configuration."""

    urls: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    realtime: bool = False
    serve: str | None = None
    """``HOST:PORT`` of the page."""
    token: str | None = None
    """Needed for anything but loopback; else the environment's ``MASKLET_TOKEN``."""


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded models, shared by all cameras."""

    detector: Detector
    make_tracker: Callable[[str, int], Tracker]
    encode: Callable[[Sequence[str]], Prompts]


def live_config(config: Config) -> Config:
    """``live.latency_frames`` as the tracker's hotstart: N frames late means N frames of probation."""
    latency = config.live.latency_frames
    if not latency:
        return config
    tracker = config.tracker
    limits = {
        "hotstart_delay_frames": latency,
        "hotstart_unmatched_frames": min(tracker.hotstart_unmatched_frames, latency),
        "hotstart_duplicate_frames": min(tracker.hotstart_duplicate_frames, latency),
    }
    return config.model_copy(update={"tracker": tracker.model_copy(update=limits)})


def with_placeholder(config: Config) -> Config:
    """Boxes alone need a phrase to hang on."""
    return config.model_copy(update={"prompts": (PLACEHOLDER,)}) if config.boxes and not config.prompts else config


def linker_config(config: Config) -> LinkerConfig:
    """When rows are final, from a :func:`live_config`."""
    hotstart = config.tracker.hotstart_delay_frames
    latency = config.live.latency_frames
    return LinkerConfig(
        delay_frames=hotstart if latency is None else latency,
        probation_frames=hotstart,
        lost_after_s=config.live.lost_after_s,
        end_after_s=config.live.end_after_s,
    )


def load(config: Config) -> Models:
    """Load detector and tracker once.

    Raises:
        ModelError, DeviceError, UsageError: see :class:`workers.gpu_worker.GpuWorker`.
    """
    # First, because it limits torch to one thread and prepare_device knows better.
    import pipeline.decode_resize  # noqa: F401
    from workers.gpu_worker import load_class, load_models, make_tracker

    tracker_class = load_class(TRACKERS, config.tracker.name, "tracker")
    detector, parts = load_models(config)

    def new_tracker(stream_id: str, session: int) -> Tracker:
        return make_tracker(config, tracker_class, detector, parts, stream_id, session)

    @lru_cache(maxsize=64)
    def encode(phrases: tuple[str, ...]) -> Prompts:
        return encode_prompts(config.model_copy(update={"prompts": phrases}))

    return Models(detector, new_tracker, lambda phrases: encode(tuple(phrases)))


def run_stream(
    config: Config, options: StreamOptions, models: Models | None = None, stop: threading.Event | None = None
) -> int:
    """Follow the cameras until they end, fail, or the user has enough; the exit code.

    Raises:
        UsageError, SourceError, ModelError, RunExistsError: nothing could be started, or nothing could be read.
        RunInterruptedError: Ctrl-C or SIGTERM; what was handed out is safe and ``--resume`` goes on with the same ids.
    """
    config = with_placeholder(live_config(config))
    specs = parse_cameras(options.urls or config.sources, realtime=options.realtime)
    if not specs and options.serve is None:
        raise UsageError("no camera given", "", "name a URL, a webcam number or a file")
    stop = stop or threading.Event()
    with ExitStack() as stack:
        interrupted = stack.enter_context(_signals(stop))
        models = models or load(config)
        models.encode(config.prompts)  # an empty phrase or a missing checkpoint shows now
        service = _service(config, options, specs, models)
        try:
            for spec in _unfinished(specs, service):
                service.add_camera(spec, config.prompts)
            if options.serve is not None:
                assert service.board is not None  # _service made it
                stack.enter_context(serve(service, service.board, options.serve, _token(options)))
            service.run(stop, until_ended=options.serve is None)
        finally:
            service.close(interrupted=stop.is_set())
    if interrupted.is_set():
        where = str(options.out) if options.out else ""
        raise RunInterruptedError("interrupted", where, "run the same line with --resume" if where else "")
    if any(outlet.is_gone for outlet in service.outlets):
        raise BrokenPipeError
    failure = all_failed(service)
    if failure is not None:
        raise failure
    return 1 if any(s.state is State.FAILED for s in service.sources.values()) else 0


def _token(options: StreamOptions) -> str | None:
    return options.token or os.environ.get("MASKLET_TOKEN") or None


def _service(config: Config, options: StreamOptions, specs: Sequence[CameraSpec], models: Models) -> StreamService:
    run = _open_run(config, options, specs) if options.out is not None else None
    return StreamService(
        config,
        _worker(config, models, specs, options.out),
        models.encode,
        _outlets(config, options),
        board=Board() if options.serve is not None else None,
        input_size=_input_size(models),
        run=run,
    )


def _worker(config: Config, models: Models, specs: Sequence[CameraSpec], out: Path | None = None) -> CameraWorker:
    return CameraWorker(
        models.detector,
        models.make_tracker,
        linker_config(config),
        batch_frames=config.detector.batch_frames,
        max_gap_s=config.live.max_gap_s,
        exemplars=_exemplars(config, models, specs, out / "state" / "exemplars" if out is not None else None),
    )


def _exemplars(config: Config, models: Models, specs: Sequence[CameraSpec], folder: Path | None) -> Exemplars | None:
    """What ``--box`` shows, on the first camera; frames of a file are read now.

    Raises:
        UsageError: a bad box, no camera to draw it on, or a file that is shorter.
    """
    boxes = [parse_box(text) for text in config.boxes]
    if not boxes:
        return None
    if not specs:
        raise UsageError("a box is drawn on the first camera", "--box", "name one")
    encode_boxes = getattr(models.detector, "encode_boxes", None)
    if encode_boxes is None:
        raise UsageError("this detector takes no boxes", "--box", "use --text, or a SAM3 model")
    exemplars = Exemplars(boxes, specs[0].stream_id, encode_boxes, folder)
    if specs[0].is_file and exemplars.missing:
        for frame in read_frames(specs[0], config.live, exemplars.missing, _input_size(models)):
            exemplars.see(frame)
        if exemplars.missing:
            raise UsageError(f"--box names frame {exemplars.missing[0]}", specs[0].shown, "the video is shorter")
    return exemplars


def _input_size(models: Models) -> tuple[int, int] | None:
    size = getattr(models.detector, "image_size", None)
    return (size, size) if size else None


def _outlets(config: Config, options: StreamOptions) -> list[Outlet]:
    """The run folder's own sink first, if there is one: state is saved after its rows."""
    specs = list(options.sinks)
    if options.out is not None:
        specs.insert(0, f"parquet:{options.out}")
    elif not specs and options.serve is None:
        specs = ["jsonl:-"]
    live = config.live
    return open_sinks(
        specs, capacity=live.sink_queue, segment_s=live.segment_s, rows_per_part=config.output.rows_per_part
    )


def _open_run(config: Config, options: StreamOptions, specs: Sequence[CameraSpec]) -> RunWriter:
    assert options.out is not None  # the caller checked
    shown = tuple(spec.shown for spec in specs)
    safe = config.model_copy(update={"sources": shown})
    manifest = Manifest(
        masklet_version(),
        model_identity(config),
        list(config.prompts),
        list(config.not_prompts),
        digest(safe),
        sources=list(shown),
    )
    if options.overwrite and not options.resume and (options.out / "manifest.json").exists():
        for name in ("state", "events"):
            shutil.rmtree(options.out / name, ignore_errors=True)
    return RunWriter.create(options.out, manifest, to_yaml(safe), resume=options.resume, overwrite=options.overwrite)


def _unfinished(specs: Sequence[CameraSpec], service: StreamService) -> Iterator[CameraSpec]:
    """All but files that an earlier run of the same folder tracked to their end."""
    for spec in specs:
        if service.run_folder is None or not (spec.is_file and service.run_folder.finished(spec.stream_id)):
            yield spec
        else:
            LOGGER.info("%s: done already", spec.stream_id)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[threading.Event]:
    """Let the first Ctrl-C or SIGTERM end the loop between two frames, and a second one end it at once."""
    interrupted = threading.Event()

    def handle(*_: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stream(
    urls: str | Sequence[str],
    text: str | Sequence[str] = (),
    *,
    not_text: str | Sequence[str] = (),
    boxes: Sequence[str] = (),
    latency: int | None = None,
    model: str | None = None,
    tracker: str | None = None,
    device: str | None = None,
    realtime: bool = False,
    config: str | None = None,
    set: Sequence[str] = (),  # noqa: A002 - the command line's name
) -> Iterator[LiveResult | Event]:
    """Follow cameras from Python: frames (:class:`LiveResult`, rows in ``.result``) and events as they become final.

    A generator with flat memory; closing it lets the cameras go. Tracking happens between two items: while the caller
    works, frames are dropped as the configuration says, not queued.

    Args:
        urls: a URL, webcam number or file, or several.
        text: the phrases to find.
        not_text: phrases whose objects are vetoed.
        boxes: exemplars on frames of the first camera, as ``FRAME:x1,y1,x2,y2[:+|:-]``.
        latency: frames of hotstart; 0 for rows at once and events for what is taken back.
        model: ``tiny`` (default), ``s0`` and so on.
        tracker: ``sam3_memory`` (default) or ``bytetrack``.
        device: ``auto``, ``cpu``, ``cuda``.
        realtime: play files at their own speed.
        config: a YAML file or preset; default ``live``.
        set: further assignments, ``section.key=value``.

    Raises:
        MaskletError: see :mod:`pipeline.errors`.
    """
    phrases, vetoes = ([t] if isinstance(t, str) else list(t) for t in (text, not_text))
    values = option_values(
        text=phrases, not_text=vetoes, boxes=list(boxes), model=model, tracker=tracker, device=device
    )
    values["live"] = {"latency_frames": latency}
    effective = with_placeholder(live_config(load_config(config or "live", set, values)))
    listed = (urls,) if isinstance(urls, str) else tuple(urls)
    return _items(effective, StreamOptions(urls=listed, realtime=realtime), load(effective))


def _items(config: Config, options: StreamOptions, models: Models) -> Iterator[LiveResult | Event]:
    specs = parse_cameras(options.urls, realtime=options.realtime)
    service = StreamService(config, _worker(config, models, specs), models.encode, [], input_size=_input_size(models))
    try:
        yield from service.drain()
        for spec in specs:
            service.add_camera(spec, config.prompts)
        while not service.is_over:
            service.turn()
            yield from service.drain()
    finally:
        service.close(interrupted=False)
