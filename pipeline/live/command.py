"""The options of ``masklet stream``. :mod:`pipeline.cli` registers :func:`stream` as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import Output, command
from pipeline.options import (
    Box,
    Conf,
    ConfigFile,
    Device,
    Dtype,
    GpusPerWorker,
    Model,
    NotText,
    Overwrite,
    Ray,
    Set,
    Text,
    TrackerName,
    Workers,
)


@command
def stream(
    output: Output,
    url: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL...", help="rtsp://, http(s)://, udp://, tcp://, a webcam's number or a file."),
    ] = None,
    text: Text = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="RUN", help="Also write a run folder.")] = None,
    not_text: NotText = None,
    box: Box = None,
    model: Model = None,
    tracker: TrackerName = None,
    conf: Conf = None,
    device: Device = None,
    dtype: Dtype = None,
    latency: Annotated[
        int | None, typer.Option(help="Frames of hotstart: final rows, N frames late; 0: at once, with retractions.")
    ] = None,
    drop: Annotated[
        str | None, typer.Option(help="When tracking is too slow: drop the oldest or latest waiting frame, or wait.")
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            "--sink",
            help="jsonl:-, jsonl:PATH, http(s)://webhook, parquet:DIR, mp4:PATH, rtsp://...; repeat for several.",
        ),
    ] = None,
    segment: Annotated[str | None, typer.Option(help="Stream time per Parquet part, such as 60s.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Play files at their own speed.")] = False,
    serve: Annotated[
        str | None, typer.Option(help="HOST:PORT of a web page with every camera, such as 127.0.0.1:8765.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Password of the page, for anything but loopback; or set MASKLET_TOKEN.")
    ] = None,
    ray: Ray = "off",
    workers: Workers = 0,
    gpus_per_worker: GpusPerWorker = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run: same ids, next frames.")] = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
    set_: Set = None,
) -> int:
    """Follow cameras live: rows and events as they happen, for days. The preset is live unless --config says other."""
    from configs.load import load_config
    from pipeline import api
    from pipeline.live.run import StreamOptions, run_stream

    values = api.option_values(
        text=text or (),
        not_text=not_text or (),
        boxes=box or (),
        model=model,
        tracker=tracker,
        device=device,
        dtype=dtype,
        conf=conf,
    )
    values["live"] = {"latency_frames": latency, "drop": drop, "segment_s": _seconds(segment)}
    effective = load_config(config or "live", set_ or (), values)
    options = StreamOptions(
        urls=tuple(url or ()),
        sinks=tuple(sink or ()),
        out=out,
        resume=resume,
        overwrite=overwrite,
        realtime=realtime,
        serve=serve,
        token=token,
        ray=ray,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )
    return run_stream(effective, options)


def _seconds(text: str | None) -> float | None:
    """``60s``, ``5m``, ``1h`` or plain seconds.

    Raises:
        UsageError: anything else.
    """
    from pipeline.errors import UsageError

    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise UsageError(f"bad duration {text!r}", "--segment", "write it as 60s, 5m or 1h") from None
