"""The worker that tracks: detector, mask decoding and memory tracker for its videos. A plain class, no Ray.

It holds the prompt embeddings, never a text encoder. Vision features stay inside; rows with run lengths come out.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from configs.schema import Config
from pipeline import flow
from pipeline.flow import JointDetection
from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.results import FrameResult
from pipeline.telemetry import StageTimes
from pipeline.types import BoxPrompt, Detections, Detector, Frame, FrameTracks, Prompts, Tracker
from trackers import TRACKERS
from workers.video_state import VideoState

LOGGER = logging.getLogger("masklet.worker")


class GpuWorker:
    """Tracks videos one after another with models loaded once.

    Args:
        config: the effective configuration.
        prompts: what to look for, already encoded.

    Raises:
        ModelError, DeviceError: the models cannot be loaded, or not on this device.
    """

    def __init__(self, config: Config, prompts: Prompts) -> None:
        self._config, self._prompts = config, prompts
        self._tracker_class = load_class(TRACKERS, config.tracker.name, "tracker")
        self._detector, self._parts = load_models(config)
        batch_frames, num_streams = config.detector.batch_frames, config.worker.streams_per_device
        self._joint = JointDetection(self._detector, batch_frames, num_streams) if num_streams > 1 else None
        self.times = StageTimes()
        self.counters: dict[str, int] = {}
        """Of the last video: ``withdrawn``, ``over_budget`` and what else its tracker counted."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """``(height, width)`` that frames should be resized to while decoding; ``None`` leaves them as they are."""
        size = getattr(self._detector, "image_size", None)
        return (size, size) if size else None

    def add_exemplars(self, frame: Frame, boxes: list[BoxPrompt]) -> None:
        """Look also for what the boxes on this frame show (or not for it, where negative)."""
        encode_boxes = getattr(self._detector, "encode_boxes")  # noqa: B009 - only the SAM3 detector has it
        self._prompts = encode_boxes(frame, boxes, self._prompts)

    def sibling(self) -> GpuWorker:
        """Another worker for a video beside this one: same models, same phrases, frames in the same detector calls."""
        other = copy.copy(self)
        other.times, other.counters = StageTimes(), {}
        return other

    def begin(self, video_id: str, source_size: tuple[int, int], *, keeps_looks: bool | None = None) -> VideoState:
        """The state of a video, or of a piece of one, before its first frame.

        ``keeps_looks``: whether its looks will be saved; ``None``: if the configuration has pieces that are stitched.
        """
        if keeps_looks is None:
            keeps_looks = self._config.chunk.length is not None and self._config.chunk.mode == "parallel"
        buffer = ReleaseBuffer(self._config.tracker.hotstart_delay_frames)
        numbering = MaskletNumbering(video_id, self._prompts, source_size)
        return VideoState(self._make_tracker(video_id, keeps_looks), buffer, numbering, keeps_looks=keeps_looks)

    def follow(
        self, frames: Iterable[Frame], state: VideoState, after_frame: Callable[[int], None] | None = None
    ) -> Iterator[FrameResult]:
        """Track one video to its last frame; every frame comes out exactly once, in order.

        ``after_frame`` is called with a frame's index once that frame is tracked and all that became final with it was
        consumed: then the state can be saved.
        """
        tracks = _noted(flow.track(self._detected(frames), state.tracker, self.times), state, after_frame)
        yield from flow.release(tracks, state.buffer, state.numbering)
        self.counters = state.counters

    def _detected(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Detections]]:
        if self._joint is not None:
            return self._joint.detect(frames, self._prompts, self.times)
        return flow.detect(frames, self._detector, self._prompts, self._config.detector.batch_frames, self.times)

    def _make_tracker(self, video_id: str, keeps_looks: bool) -> Tracker:
        return make_tracker(
            self._config, self._tracker_class, self._detector, self._parts, video_id, keeps_looks=keeps_looks
        )


def _noted(
    tracks: Iterable[FrameTracks], state: VideoState, after_frame: Callable[[int], None] | None
) -> Iterator[FrameTracks]:
    for frame_tracks in tracks:
        state.looks.note(frame_tracks)
        yield frame_tracks
        if after_frame is not None:
            after_frame(frame_tracks.index)


def make_tracker(
    config: Config,
    tracker_class: Any,
    detector: Detector,
    parts: Any,
    stream_id: str,
    session: int = 0,
    *,
    keeps_looks: bool = False,
) -> Tracker:
    """A fresh tracker for one stream; ``parts`` are the model's, ``None`` for a tracker that needs none.

    ``keeps_looks``: it will be asked what its objects look like.
    """
    if parts is None:
        made: Tracker = tracker_class(config.tracker, stream_id=stream_id, session=session)
    else:
        sam3: Any = detector  # only this one has features
        made = tracker_class(
            parts,
            sam3.features,
            config.tracker,
            stream_id=stream_id,
            session=session,
            keeps_looks=keeps_looks,
            meanwhile=sam3.meanwhile,
        )
    return made


def load_class(table: dict[str, str], name: str, kind: str) -> Any:
    """The class a table of ``name -> "module:Class"`` names.

    Raises:
        UsageError: the table has no such name.
    """
    from pipeline.errors import UsageError

    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}", "", f"choose one of: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def load_models(config: Config) -> tuple[Detector, Any]:
    """Detector and, for a memory tracker, its model parts."""
    if config.detector.detections is not None:
        return _scripted(config), None
    from pipeline.checkpoints import open_checkpoint
    from pipeline.compiled import COMPILER
    from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
    from trackers.sam_heads import CompiledParts
    from workers.devices import prepare_device

    device, dtype = prepare_device(config.device)
    checkpoint = open_checkpoint(config.model)
    detector = Sam3LiteTextDetector(
        checkpoint,
        config.detector,
        device=device,
        dtype=dtype,
        compile_with=COMPILER if config.device.compile else None,
        num_streams=config.worker.streams_per_device,
    )
    needs_memory = config.tracker.name == "sam3_memory"
    parts = checkpoint.load_tracker(device, dtype) if needs_memory else None
    if parts is not None and config.device.compile:
        return detector, CompiledParts.of(parts, COMPILER)
    return detector, parts


def _scripted(config: Config) -> Detector:
    from pipeline.detectors.scripted import ScriptedDetector
    from pipeline.errors import UsageError

    if config.tracker.name == "sam3_memory":
        raise UsageError("the memory tracker needs the model's own features", "--detections", "add --tracker bytetrack")
    detector: Detector = ScriptedDetector(config.detector)
    return detector
