"""``masklet stream`` as a function: options to parts, parts to a running service, its end to an exit code."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.load import digest, load_config, to_yaml
from configs.schema import Config
from pipeline.api import masklet_version, model_identity, option_values
from pipeline.errors import RunInterruptedError, UsageError
from pipeline.live.board import Board
from pipeline.live.build import Models, input_size, live_config, load, make_worker, with_placeholder
from pipeline.live.events import Event, LiveResult
from pipeline.live.group import CameraGroup, GroupCamera, GroupSpec
from pipeline.live.remote import RemoteService
from pipeline.live.roster import Roster
from pipeline.live.server import serve
from pipeline.live.service import StreamService, known_past
from pipeline.live.sinks import Outlet, open_sinks
from pipeline.sources.live_open import CameraSpec, parse_cameras
from pipeline.store import Manifest, RunWriter

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
    ray: str = "off"
    """``off``: in this process; ``auto``, ``local`` or an address: one actor per group of cameras."""
    workers: int = 0
    """Actors; 0: one per GPU, or per two CPUs; at most one per camera."""
    gpus_per_worker: float | None = None
    load: Callable[[Config], Models] = load
    """How an actor gets its models."""


def run_stream(
    config: Config, options: StreamOptions, models: Models | None = None, stop: threading.Event | None = None
) -> int:
    """Follow the cameras until they end, fail, or the user has enough; the exit code.

    Raises:
        UsageError, SourceError, ModelError, RunExistsError: nothing could be started, or nothing could be read.
        RunInterruptedError: Ctrl-C or SIGTERM; what was handed out is safe and ``--resume`` goes on with the same ids.
    """
    stop = stop or threading.Event()
    with ExitStack() as stack:
        interrupted = stack.enter_context(_signals(stop))
        LOGGER.info("loading the model")
        service = open_service(config, options, models)
        LOGGER.info("following %s; Ctrl-C ends it", ", ".join(s["id"] for s in service.statuses()) or "no camera yet")
        try:
            if options.serve is not None:
                assert service.board is not None  # made with it
                stack.enter_context(serve(service, service.board, options.serve, _token(options)))
            service.run(stop, until_ended=options.serve is None)
        finally:
            last = service.statuses()
            service.close(interrupted=stop.is_set())
    for one in last:
        numbers = [one[name] for name in ("tracked", "dropped", "masklets")]
        LOGGER.info("%s: %d frames tracked, %d dropped, %d masklets", one["id"], *numbers)
    if interrupted.is_set():
        where = str(options.out) if options.out else ""
        raise RunInterruptedError("interrupted", where, "run the same line with --resume" if where else "")
    if service.is_unheard:
        raise BrokenPipeError
    failure = service.failure()
    if failure is not None:
        raise failure
    return 1 if service.any_failed else 0


def open_service(config: Config, options: StreamOptions, models: Models | None = None) -> StreamService | RemoteService:
    """The cameras, ready to run, in this process or in actors; the caller closes it.

    Raises:
        UsageError, SourceError, ModelError, RunExistsError: nothing could be started.
    """
    config = with_placeholder(live_config(config))
    specs = parse_cameras(options.urls or config.sources, realtime=options.realtime)
    if not specs and options.serve is None:
        raise UsageError("no camera given", "", "name a URL, a webcam number or a file")
    return _service(config, options, specs, models) if options.ray == "off" else _remote(config, options, specs)


def _token(options: StreamOptions) -> str | None:
    return options.token or os.environ.get("MASKLET_TOKEN") or None


def _service(
    config: Config, options: StreamOptions, specs: Sequence[CameraSpec], models: Models | None
) -> StreamService:
    """Cameras of this process."""
    models = models or load(config)
    models.encode(config.prompts)  # an empty phrase or a missing checkpoint shows now
    run = _open_run(config, options, specs) if options.out is not None else None
    service = StreamService(
        config,
        make_worker(config, models, specs[0] if specs else None, run.folder / "state" if run is not None else None),
        models.encode,
        _outlets(config, options),
        board=Board() if options.serve is not None else None,
        input_size=input_size(models),
        run=run,
    )
    try:
        for spec in _unfinished(specs, run):
            service.add_camera(spec, config.prompts)
        for spec, phrases in service.roster.cameras():
            service.add_camera(spec, phrases)
    except BaseException:
        service.close(interrupted=True)
        raise
    return service


def _remote(config: Config, options: StreamOptions, specs: Sequence[CameraSpec]) -> RemoteService:
    """Cameras in groups on a Ray cluster, one actor each.

    Raises:
        UsageError: no such cluster, or a box on a camera that not all groups see.
    """
    from workers.ray_cameras import RayGroups, plan_share
    from workers.ray_session import connect

    session = connect(options.ray)
    count, share = plan_share(on_cpu=config.device.name == "cpu", workers=options.workers, gpus=options.gpus_per_worker)
    count = min(count, max(len(specs), 1))
    if config.boxes and specs and not specs[0].is_file and count > 1:
        raise UsageError("a box on a live camera reaches one worker only", "--box", "add --workers 1")
    run = _open_run(config, options, specs) if options.out is not None else None
    outlets, board = _outlets(config, options), Board() if options.serve is not None else None
    scratch = Path(tempfile.mkdtemp(prefix="masklet-stream-")) if run is None else None
    kept = scratch or (run.folder if run is not None else Path())
    threads = config.device.threads or max(int(share.cpus), 1)
    common = GroupSpec(
        config.model_copy(update={"device": config.device.model_copy(update={"threads": threads})}),
        (),
        kept.absolute() / "state",
        specs[0] if specs else None,
        board is not None or any(o.wants_pictures for o in outlets),
        options.load,
    )
    added = Roster(run.folder / "state").cameras() if run is not None else []
    cameras = [GroupCamera(spec, None, known_past(spec, outlets)) for spec in _unfinished(specs, run)]
    cameras += [GroupCamera(spec, tuple(phrases), known_past(spec, outlets)) for spec, phrases in added]
    groups = [replace(common, cameras=tuple(cameras[k::count])) for k in range(count)]
    return RemoteService(
        config, RayGroups(CameraGroup, share, session), groups, outlets, board=board, run=run, scratch=scratch
    )


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


def _unfinished(specs: Sequence[CameraSpec], run: RunWriter | None) -> Iterator[CameraSpec]:
    """All but files that an earlier run of the same folder tracked to their end."""
    for spec in specs:
        if run is None or not (spec.is_file and run.finished(spec.stream_id)):
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
    service = StreamService(
        config, make_worker(config, models, specs[0]), models.encode, [], input_size=input_size(models)
    )
    try:
        yield from service.drain()
        for spec in specs:
            service.add_camera(spec, config.prompts)
        while not service.is_over:
            service.turn()
            yield from service.drain()
    finally:
        service.close(interrupted=False)
