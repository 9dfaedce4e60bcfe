"""The configuration tree. Every section is frozen, refuses unknown keys and states units in its names.

A component gets its own section, never the whole tree. Values live in ``configs/*.yaml``; the defaults stand here.
Limits that must match SAM3 count processed frames and say so; wall-clock limits are in seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(Section):
    """Which weights to load."""

    name: str = Field("tiny", description="tiny | s0 | s1 | l | sam3 | a Hub id | a local folder")
    tracker_from: str | None = Field(
        None, description="Hub id or folder with the SAM3 tracker half; default facebook/sam3 where one is needed"
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit) of `name`")


class TextConfig(Section):
    """How phrases become tokens."""

    convention: Literal["transformers", "original"] = Field(
        "transformers",
        description="transformers: padded to 32 tokens with a pad mask, as Sam3Processor does; "
        "original: the authors' 16 tokens, zero-padded, no pad mask",
    )


class DeviceConfig(Section):
    """Where and in which precision models run."""

    name: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 elsewhere"
    )
    compile: bool = Field(False, description="torch.compile image encoder, DETR and tracker; sizes recur")
    threads: int = Field(0, ge=0, description="CPU threads for torch; 0 leaves one core to the decode process")


class DecodeConfig(Section):
    """How video becomes frames."""

    decoder: Literal["auto", "decord", "pyav"] = "auto"
    batch_frames: int = Field(8, ge=1, le=64, description="frames per message from the decode process")
    queue_batches: int = Field(3, ge=1, le=32, description="messages in flight before the decode process waits")
    segment_frames: int = Field(256, ge=1, description="frames decord may hold at once")
    segment_budget_mb: int = Field(512, ge=16, description="memory decord may take for one segment")
    stall_timeout_s: float = Field(20.0, gt=0, description="a decode process silent for so long is killed")
    memory_limit_mb: int = Field(4096, ge=256, description="a decode process larger than this is killed")


class DetectorConfig(Section):
    """Text-prompted detection (SAM3's published thresholds)."""

    score_threshold: Probability = Field(0.5, description="detections below are dropped")
    nms_iou: Probability = Field(0.1, description="mask IoU above which the weaker of two detections is dropped")
    mask_margin: float | None = Field(
        None,
        ge=0,
        le=10,
        description="a mask ends so far outside its box, in sides of the box; none: wherever the model draws, as SAM3",
    )
    fill_hole_area_px: int = Field(16, ge=0, description="holes and islands up to this area, pixels of a 288 px mask")
    batch_frames: int = Field(4, ge=1, le=64, description="frames per call of the image encoder")
    veto_iou: Probability = Field(0.5, description="mask IoU with a --not-text detection that vetoes a detection")
    detections: str | None = Field(None, description="a file of detections to use instead of a model")


class TrackerConfig(Section):
    """Memory tracking and its heuristics (names and values: SAM3, section on the video predictor)."""

    name: str = Field("sam3_memory", description="sam3_memory | bytetrack")
    mode: Literal["exact", "adaptive"] = Field(
        "exact",
        description="sam3_memory; exact: memory attention for every object on every frame, as the reference; "
        "adaptive: only for objects in doubt, and identities also by motion and look",
    )
    refresh_every_frames: int = Field(16, ge=1, description="adaptive: each object attends at least so often")
    rest_score: Probability = Field(0.7, description="adaptive: detection confidence that can do without attention")
    rest_iou: Probability = Field(0.5, description="adaptive: ... and its overlap with the object's predicted mask")
    same_look: float = Field(0.8, ge=-1, le=1, description="adaptive: cosine of two looks of one thing, at least")
    hide_after_frames: int = Field(5, ge=0, description="adaptive: frames without a detection that hide an object")
    max_objects: int = Field(10_000, ge=1, description="live objects per stream; the best-scoring are kept")
    new_object_score: Probability = Field(0.7, description="a detection needs this score to start an object")
    match_iou: Probability = Field(0.1, description="an object overlapping a detection by less is another one")
    track_match_iou: Probability = Field(0.5, description="an object without a detection above this is unmatched")
    hotstart_delay_frames: int = Field(15, ge=0, description="frames an object is on probation, and output is held")
    hotstart_unmatched_frames: int = Field(8, ge=1, description="unmatched frames in probation that withdraw it")
    hotstart_duplicate_frames: int = Field(8, ge=1, description="frames shadowing an older object that withdraw it")
    suppress_unmatched_only_within_hotstart: bool = True
    keep_alive_init_frames: int = Field(30, ge=0)
    keep_alive_max_frames: int = Field(30, ge=0)
    keep_alive_min_frames: int = Field(-1, le=0)
    keep_alive_decrease_for_empty: bool = False
    recondition_every_frames: int = Field(16, ge=0, description="0 switches reconditioning off")
    recondition_score: Probability = Field(0.8, description="detection confidence that may recondition")
    recondition_iou: Probability = Field(0.8, description="mask IoU of detection and object that may recondition")
    recondition_with: Literal["tracked", "detected"] = Field(
        "detected", description="which mask becomes memory; detected: as facebook/sam3's published configuration"
    )
    occlusion_suppress_iou: Probability = Field(0.7, description="overlap at which the lately hidden object yields")
    non_overlapping_memory: bool = Field(True, description="objects of one phrase share no pixel in memory")
    fill_hole_area_px: int = Field(16, ge=0, description="as in the detector, for what is tracked")
    high_score: Probability = Field(0.6, description="bytetrack: detections above are matched first")
    lost_frames: int = Field(30, ge=1, description="frames a lost object can still return (bytetrack, adaptive)")

    @model_validator(mode="after")
    def _keep_alive_range(self) -> TrackerConfig:
        if self.keep_alive_init_frames > self.keep_alive_max_frames:
            raise ValueError("keep_alive_init_frames must not exceed keep_alive_max_frames")
        return self


Duration = Annotated[str, Field(pattern=r"^(\d+(\.\d*)?|\.\d+)s?$", description="seconds, as `60s`")]


class ChunkConfig(Section):
    """Cutting one long video into pieces: tracked in parallel and stitched, or one after another with saved state."""

    mode: Literal["parallel", "sequential"] = Field(
        "parallel",
        description="parallel: pieces start afresh and are stitched; sequential: state goes on from piece to piece, "
        "rows equal the uncut run's and a resumed run continues at the last finished piece",
    )
    length: Duration | None = Field(None, description="seconds per piece, as `60s`; none: the video is one piece")
    overlap: Duration = Field("2s", description="how long neighbouring pieces share, to recognise their objects by")
    max_gap: Duration = Field("5s", description="how long an object may be out of sight across a cut")

    @property
    def length_s(self) -> float | None:
        """Seconds per piece."""
        return float(self.length.rstrip("s")) if self.length is not None else None

    @property
    def overlap_s(self) -> float:
        """Seconds that neighbours share."""
        return float(self.overlap.rstrip("s"))

    @property
    def max_gap_s(self) -> float:
        """Seconds out of sight that a gap link may bridge."""
        return float(self.max_gap.rstrip("s"))

    @model_validator(mode="after")
    def _overlap_fits(self) -> ChunkConfig:
        if self.mode == "parallel" and self.length_s is not None and not 0 < self.overlap_s <= self.length_s / 2:
            raise ValueError("overlap must be positive and at most half of length")
        return self


class OutputConfig(Section):
    """The run folder."""

    rows_per_part: int = Field(20_000, ge=100, description="a Parquet part is committed after so many rows")
    frames_per_part: int = Field(2_000, ge=10, description="... or after so many frames")
    overlay: bool = Field(False, description="also write the annotated video")


class LiveConfig(Section):
    """Cameras and other endless sources: `masklet stream`."""

    latency_frames: int | None = Field(
        None, ge=0, description="frames of hotstart: output is so late and final; 0: at once; default: the tracker's"
    )
    drop: Literal["oldest", "latest", "wait"] = Field(
        "oldest", description="which frame goes when tracking is too slow: the oldest waiting, the latest, or none"
    )
    queue_frames: int = Field(2, ge=1, le=64, description="decoded frames that may wait per camera")
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    decode_threads: int = Field(1, ge=1, le=16, description="slice threads of the decoder, per camera")
    open_timeout_s: float = Field(5.0, gt=0, description="a connection that takes longer has failed")
    stall_timeout_s: float = Field(3.0, gt=0, description="a camera without a frame for so long is connected anew")
    backoff_cap_s: float = Field(2.0, gt=0, description="longest wait before connecting again")
    give_up_after_s: float = Field(0.0, ge=0, description="a camera gone for so long has failed; 0: never give up")
    max_gap_s: float = Field(10.0, gt=0, description="a longer gap starts a new session with new ids")
    lost_after_s: float = Field(0.5, ge=0, description="an object out of sight for so long is reported lost")
    end_after_s: float = Field(30.0, gt=0, description="... and for so long has ended: the tracker forgets it")
    checkpoint_every_s: float = Field(10.0, gt=0, description="state and rows are saved so often")
    segment_s: float = Field(60.0, gt=0, description="stream time per Parquet part")
    max_cameras: int = Field(64, ge=1)
    max_frame_px: int = Field(4096 * 2304, ge=1024, description="a stream with larger frames is refused")
    picture_px: int = Field(960, ge=64, description="long side of pictures for the page and annotated video")
    sink_queue: int = Field(512, ge=1, description="frames that may wait for a slow sink")
    allow_hosts: tuple[str, ...] = Field((), description="further hosts an HTTP stream or playlist may lead to")
    allow_urls: tuple[str, ...] = Field((), description="patterns of addresses that may be added from the web page")
    max_viewers: int = Field(16, ge=1, description="open event streams of the web page")


class WorkerConfig(Section):
    """How much one process does at once."""

    streams_per_device: int = Field(
        1, ge=1, le=16, description="videos (or chunks) tracked side by side, their frames in the same detector calls"
    )


class SamplingConfig(Section):
    """Which frames of a file are tracked."""

    stride: int = Field(1, ge=1, description="every Nth frame")
    start: str | None = Field(None, description="first moment: a frame number, or seconds as `12.5s`")
    stop: str | None = Field(None, description="end (exclusive): a frame number, or seconds as `90s`")


class Config(Section):
    """The whole tree: what `config.yaml` in a run folder holds."""

    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    device: DeviceConfig = DeviceConfig()
    decode: DecodeConfig = DecodeConfig()
    detector: DetectorConfig = DetectorConfig()
    tracker: TrackerConfig = TrackerConfig()
    sampling: SamplingConfig = SamplingConfig()
    worker: WorkerConfig = WorkerConfig()
    chunk: ChunkConfig = ChunkConfig()
    output: OutputConfig = OutputConfig()
    live: LiveConfig = LiveConfig()
    sources: tuple[str, ...] = Field((), description="what to track when the command line names nothing")
    prompts: tuple[str, ...] = ()
    not_prompts: tuple[str, ...] = ()
    boxes: tuple[str, ...] = Field((), description="exemplars as FRAME:x1,y1,x2,y2[:+|:-]")
