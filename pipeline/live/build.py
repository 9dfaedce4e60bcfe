"""From a configuration to the parts of a stream service: models, worker, exemplars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from configs.schema import Config
from pipeline.api import encode_prompts, parse_box
from pipeline.errors import UsageError
from pipeline.live.exemplars import PLACEHOLDER, Exemplars
from pipeline.live.linker import LinkerConfig
from pipeline.sources.live import read_frames
from pipeline.sources.live_open import CameraSpec
from pipeline.types import Detector, Prompts, Tracker
from trackers import TRACKERS
from workers.camera_worker import CameraWorker


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


def make_worker(
    config: Config, models: Models, exemplar: CameraSpec | None = None, state: Path | None = None
) -> CameraWorker:
    """A worker without cameras. Boxes are drawn on ``exemplar`` and kept below ``state``."""
    return CameraWorker(
        models.detector,
        models.make_tracker,
        linker_config(config),
        batch_frames=config.detector.batch_frames,
        max_gap_s=config.live.max_gap_s,
        exemplars=_exemplars(config, models, exemplar, state / "exemplars" if state is not None else None),
    )


def _exemplars(config: Config, models: Models, camera: CameraSpec | None, folder: Path | None) -> Exemplars | None:
    """What ``--box`` shows, on the first camera; frames of a file are read now.

    Raises:
        UsageError: a bad box, no camera to draw it on, or a file that is shorter.
    """
    boxes = [parse_box(text) for text in config.boxes]
    if not boxes:
        return None
    if camera is None:
        raise UsageError("a box is drawn on the first camera", "--box", "name one")
    encode_boxes = getattr(models.detector, "encode_boxes", None)
    if encode_boxes is None:
        raise UsageError("this detector takes no boxes", "--box", "use --text, or a SAM3 model")
    exemplars = Exemplars(boxes, camera.stream_id, encode_boxes, folder)
    if camera.is_file and exemplars.missing:
        for frame in read_frames(camera, config.live, exemplars.missing, input_size(models)):
            exemplars.see(frame)
        if exemplars.missing:
            raise UsageError(f"--box names frame {exemplars.missing[0]}", camera.shown, "the video is shorter")
    return exemplars


def input_size(models: Models) -> tuple[int, int] | None:
    """``(h, w)`` that frames are resized to; ``None`` leaves them as they are."""
    size = getattr(models.detector, "image_size", None)
    return (size, size) if size else None
