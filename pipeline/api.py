"""The public functions: from a configuration to the parts, and the parts to a flow. Nothing else wires objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import models
from configs.load import digest, load_config, to_yaml
from configs.schema import Config
from pipeline.decode import local_path
from pipeline.errors import SourceError, UsageError
from pipeline.job import Executor, Job, ProgressListener, Silent
from pipeline.results import FrameResult
from pipeline.sources.file import VideoItem, expand
from pipeline.store import Manifest, RunWriter, Twin, check_reusable, may_go_on, open_run
from pipeline.types import BoxPrompt
from workers.local_executor import LocalExecutor
from workers.phrases import encode_prompts as encode_prompts
from workers.unit_worker import UnitWorker, start_decoder
from workers.units import content_digest

DEMO_CLIP = Path(models.__file__).parent / "tiny" / "demo.mp4"
DEMO_PHRASES = ("red circle", "blue star", "green thing")


def masklet_version() -> str:
    """Version of the installed package, ``0+source`` from a bare checkout."""
    try:
        return version("masklet")
    except PackageNotFoundError:
        return "0+source"


def track(
    source: str | Path | Sequence[str | Path],
    text: str | Sequence[str] = (),
    *,
    not_text: str | Sequence[str] = (),
    boxes: Sequence[str] = (),
    model: str | None = None,
    tracker: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    conf: float | None = None,
    config: str | None = None,
    set: Sequence[str] = (),  # noqa: A002 - the command line's name
) -> Iterator[FrameResult]:
    """Track every instance of the phrases through one or several videos; frames come out in order, late by hotstart.

    A generator with flat memory: results are yielded as they become final, every frame of the video exactly once.

    Args:
        source: a file, folder, glob, manifest or URL, or several of them.
        text: the phrases to find.
        not_text: phrases whose objects are vetoed.
        boxes: exemplars as ``FRAME:x1,y1,x2,y2[:+|:-]``.
        model: ``tiny`` (default), ``s0``, ``s1``, ``l``, ``sam3``, a Hub id or a local folder.
        tracker: ``sam3_memory`` (default) or ``bytetrack``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        conf: confidence that starts a masklet, 0..1.
        config: a YAML file or preset name.
        set: further assignments, ``section.key=value``.

    Raises:
        MaskletError: see :mod:`pipeline.errors`.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    values = option_values(
        text=_listed(text),
        not_text=_listed(not_text),
        boxes=list(boxes),
        model=model,
        tracker=tracker,
        device=device,
        dtype=dtype,
        conf=conf,
    )
    effective = load_config(config, set, values)
    return _results(effective, expand([str(s) for s in sources]))


def _results(config: Config, items: Sequence[VideoItem]) -> Iterator[FrameResult]:
    with open_worker(config, items) as worker:
        for item in items:
            yield from worker.results(item)


def option_values(
    *,
    text: Sequence[str] = (),
    not_text: Sequence[str] = (),
    boxes: Sequence[str] = (),
    model: str | None = None,
    tracker: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    conf: float | None = None,
    decoder: str | None = None,
    stride: int | None = None,
    start: str | None = None,
    stop: str | None = None,
    detections: str | None = None,
    overlay: bool | None = None,
    chunk: str | None = None,
    chunk_mode: str | None = None,
    overlap: str | None = None,
) -> dict[str, Any]:
    """Options of the command line as a configuration tree; what is not given is left out.

    ``conf`` is the confidence that starts a masklet; detections down to 5/7 of it (SAM3's 0.5 : 0.7) keep one alive.
    """
    return {
        "prompts": list(text) or None,
        "not_prompts": list(not_text) or None,
        "boxes": list(boxes) or None,
        "model": {"name": model},
        "tracker": {"name": tracker, "new_object_score": conf},
        "detector": {"score_threshold": None if conf is None else round(conf * 5 / 7, 6), "detections": detections},
        "device": {"name": device, "dtype": dtype},
        "decode": {"decoder": decoder},
        "sampling": {"stride": stride, "start": start, "stop": stop},
        "chunk": {"length": chunk, "mode": chunk_mode, "overlap": overlap},
        "output": {"overlay": overlay},
    }


def track_to_run(
    config: Config,
    sources: Sequence[str],
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: ProgressListener | None = None,
    placement: Placement | None = None,
    twin: Twin | None = None,
) -> Manifest:
    """Track the sources into the run folder ``out``; ``masklet track``.

    Args:
        config: the effective configuration.
        sources: what to track; ``config.sources`` if empty.
        out: the run folder.
        resume: continue a run of the same plan.
        overwrite: replace a run.
        listener: is told of progress.
        placement: where the work is done; without one, in this process.
        twin: gets what is finished of the run too (:func:`pipeline.remote.open_folder`).

    Raises:
        SourceError: nothing could be read at all; otherwise unreadable videos are entries with status ``failed``.
        RunExistsError, UsageError: see :meth:`pipeline.store.RunWriter.create`.
    """
    items = expand(list(sources) or list(config.sources))
    if not items:
        raise UsageError("no source given", "", "name a video, a folder, a glob, a manifest or a URL")
    config = config.model_copy(update={"sources": tuple(sources) or config.sources})
    check_reusable(out, resume=resume, overwrite=overwrite)  # before the models load, not after
    with closing(open_executor(config, items, placement or Placement())) as executor:
        run = RunWriter.create(
            out, _manifest(config, items), to_yaml(config), resume=resume, overwrite=overwrite, twin=twin
        )
        manifest = Job(config, run, executor).execute(items, listener or Silent())
    if all(v.status == "failed" and not may_go_on(v.error) for v in manifest.videos):
        raise SourceError(manifest.videos[0].error or "nothing could be read")
    return manifest


def _manifest(config: Config, items: Sequence[VideoItem]) -> Manifest:
    return Manifest(
        masklet_version(),
        model_identity(config),
        list(config.prompts),
        list(config.not_prompts),
        digest(config),
        sources=[i.uri for i in items],
    )


def model_identity(config: Config) -> dict[str, str]:
    """``id`` and ``fingerprint`` of the weights (or of the detections file) a run was made with."""
    if config.detector.detections is not None:
        file = config.detector.detections
        return {"id": f"detections:{file}", "fingerprint": _file_digest(file)}
    from pipeline.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(config.model)
    return {"id": checkpoint.name, "fingerprint": checkpoint.fingerprint}


def _file_digest(file: str) -> str:
    """Of detections: a changed file is another plan."""
    try:
        return content_digest(local_path(file))
    except OSError as error:
        raise UsageError("cannot read the detections", file, str(error.strerror or error)) from error


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a job's units are done."""

    ray: str = "off"
    """``off``: in this process, Ray is not imported; ``auto``: join ``RAY_ADDRESS`` or start a cluster;
    ``local``: start one; or an address."""
    workers: int = 0
    """Actors; 0 is one per GPU, or one per two CPUs."""
    gpus_per_worker: float | None = None
    """Below 1, several actors share a GPU."""


def open_executor(config: Config, items: Sequence[VideoItem], placement: Placement) -> Executor:
    """Encode the phrases once, and load the models here or in the actors of a Ray cluster.

    Raises:
        UsageError: nothing to look for, an empty phrase, or no such cluster.
    """
    if placement.ray == "off":
        if placement.workers > 1:
            raise UsageError("--workers needs Ray", f"--workers {placement.workers}", "add --ray auto")
        return LocalExecutor(open_worker(config, items), config.worker.streams_per_device)
    boxes = [parse_box(b) for b in config.boxes]
    prompts = encode_prompts(config, has_boxes=bool(boxes))
    from workers.ray_executor import RayExecutor, WorkerSpec
    from workers.ray_session import connect

    session = connect(placement.ray)
    spec = WorkerSpec(config, boxes, items[0].uri)
    return RayExecutor(
        spec, prompts, workers=placement.workers, gpus_per_worker=placement.gpus_per_worker, session=session
    )


def open_worker(config: Config, items: Sequence[VideoItem]) -> UnitWorker:
    """Encode the phrases once and load the models. Boxes are drawn on the first video.

    Raises:
        UsageError: nothing to look for, or an empty phrase.
    """
    boxes = [parse_box(b) for b in config.boxes]
    decoder = start_decoder(config)
    try:
        prompts = encode_prompts(config, has_boxes=bool(boxes))
        return UnitWorker(config, prompts, boxes, items[0].uri, decoder)
    except BaseException:
        decoder.close()
        raise


def parse_box(text: str) -> BoxPrompt:
    """``FRAME:x1,y1,x2,y2`` with ``:+`` (default) or ``:-``.

    Raises:
        UsageError: anything else, or an empty box.
    """
    try:
        frame, box, *sign = text.split(":")
        x1, y1, x2, y2 = (float(v) for v in box.split(","))
        if len(sign) > 1 or (sign and sign[0] not in "+-") or not (x1 < x2 and y1 < y2):
            raise ValueError(text)
        return BoxPrompt(int(frame), (x1, y1, x2, y2), sign != ["-"])
    except ValueError:
        raise UsageError(f"bad box {text!r}", "", "write FRAME:x1,y1,x2,y2 and optionally :+ or :-") from None


def write_overlays(out: Path) -> list[Path]:
    """The annotated video of every video in a run: ``overlay.mp4`` for one, ``overlays/VIDEO_ID.mp4`` for several."""
    from pipeline.render import render

    run = open_run(out)
    drawable = [v.video_id for v in run.videos if v.status != "failed"]
    if len(run.videos) == 1:
        return [render(run, out / "overlay.mp4", video_id=v) for v in drawable]
    return [render(run, out / "overlays" / f"{v}.mp4", video_id=v) for v in drawable]


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
