"""The run folder: Parquet parts in time order, a manifest, the effective configuration.

``RUN/masklets/VIDEO_ID/part-00000.parquet ...`` hold one row per masklet per frame, sorted by frame and masklet; a part
appears by atomic rename, never half-written. ``RUN/manifest.json`` is written by the coordinating process only, also by
atomic rename; a video is listed in it once it has ended. Reading streams: no function here loads a whole run unless the
caller asks for a table.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from yaml import YAMLError

from configs.load import differences
from pipeline.errors import RunError, RunExistsError, UsageError
from pipeline.results import FrameResult
from pipeline.types import RLE, Masklet

if TYPE_CHECKING:
    from pipeline.sinks import ExportReport

_CHANGES_SHOWN = 8
_PAUSE = 20
"""Between two saves of a manifest that nobody has to wait for, in times that one takes."""
_LONGEST_PAUSE_S = 60.0
"""... and in seconds."""
SCHEMA_VERSION = 1
"""Of the run folder. Readers refuse a newer one; a change that old readers would misread raises it."""

_RLE_TYPE = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.binary())])
ROW_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("frame", pa.int32()),
        ("pts_s", pa.float64()),
        ("masklet_id", pa.int32()),
        ("prompt", pa.string()),
        ("score", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("area_px", pa.int32()),
        ("rle", _RLE_TYPE),
    ]
)
"""Column order and types of ``RUN/masklets``."""


@dataclass(slots=True)
class VideoEntry:
    """One video in the manifest, listed once it has ended."""

    video_id: str
    uri: str
    status: str
    """``done``, ``partial`` (fewer frames than promised, or interrupted) or ``failed``."""
    width: int = 0
    height: int = 0
    fps: str | None = None
    """Average rate as an exact fraction, such as ``30000/1001``."""
    num_frames: int = 0
    """Frames the source has (those that decode); ``frame`` in the rows is below it."""
    num_tracked: int = 0
    """Frames that were tracked (fewer with ``--stride``, ``--start`` or ``--stop``)."""
    num_masklets: int = 0
    decoder: str = ""
    """The decoder that did most of the work; ``decoders`` has all."""
    error: str | None = None
    decoders: dict[str, int] = field(default_factory=dict)
    """Frames by decoder."""
    duration_s: float | None = None
    counters: dict[str, int] = field(default_factory=dict)
    """What was dropped or taken back: ``withdrawn``, ``over_budget``, ``non_finite`` ..."""
    timings_s: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds per stage, and ``total``."""
    chunks: list[tuple[int, int]] = field(default_factory=list)
    """Frame ranges tracked apart and stitched; empty for a video tracked in one piece."""
    missing: list[tuple[int, int]] = field(default_factory=list)
    """Frame ranges of pieces that failed: ``--resume`` does these again and nothing else."""
    links: list[dict[str, Any]] = field(default_factory=list)
    """Stitches: ``masklet_id, frame, kind (overlap|gap), confidence, rival, weak`` (weak ones deserve a look)."""
    source_fingerprint: str = ""
    """What the source was when it was tracked; :func:`workers.units.fingerprint`."""
    prompts: list[str] | None = None
    """The phrases that were searched for in this video, where they are not all of the run's (imported ground truth)."""


@dataclass(slots=True)
class Manifest:
    """``manifest.json``. ``status`` is ``running``, ``complete`` (see the videos' own) or ``interrupted``."""

    masklet_version: str
    model: dict[str, str]
    prompts: list[str]
    not_prompts: list[str]
    config_digest: str
    status: str = "running"
    videos: list[VideoEntry] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    running: dict[str, dict[str, int]] = field(default_factory=dict)
    """Videos under way: ``units_done`` of ``units``, and the ``frames`` of the units at hand and done."""
    schema_version: int = SCHEMA_VERSION

    def put(self, entry: VideoEntry) -> None:
        """Add the entry, replacing one of the same video."""
        self.videos = [v for v in self.videos if v.video_id != entry.video_id] + [entry]

    def count(self) -> None:
        """Bring the counts of videos, frames and masklets up to date; others stay."""
        by_status = Counter(v.status for v in self.videos)
        self.counts |= {
            "videos": len(self.videos),
            **{status: by_status[status] for status in ("done", "partial", "failed")},
            "frames": sum(v.num_tracked for v in self.videos),
            "masklets": sum(v.num_masklets for v in self.videos),
        }


def write_atomically(path: Path, data: bytes) -> None:
    """Write, fsync and rename, so that ``path`` holds either its old or its new content after any crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename durable (needed on POSIX; NFS too)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rows_table(results: Sequence[FrameResult]) -> pa.Table:
    """The rows of these frames, in their order, as a table of :data:`ROW_SCHEMA`."""
    counts = [len(r) for r in results]
    xyxy = np.concatenate([r.xyxy for r in results] or [np.zeros((0, 4), np.float32)]).astype(np.float32)
    rles = [rle for r in results for rle in r.rles]
    columns: list[Any] = [
        np.repeat(np.array([r.video_id for r in results], dtype=object), counts),
        np.repeat(np.array([r.index for r in results], np.int32), counts),
        np.repeat(np.array([r.pts_s for r in results], np.float64), counts),
        np.concatenate([r.masklet_id for r in results] or [np.zeros(0, np.int32)]).astype(np.int32),
        [p for r in results for p in r.prompt],
        np.concatenate([r.score for r in results] or [np.zeros(0, np.float32)]).astype(np.float32),
        *(np.ascontiguousarray(xyxy[:, i]) for i in range(4)),
        np.concatenate([r.area_px() for r in results] or [np.zeros(0, np.int32)]).astype(np.int32),
        [{"size": list(r.size), "counts": r.counts} for r in rles],
    ]
    arrays = [pa.array(c, type=f.type) for c, f in zip(columns, ROW_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)


class VideoWriter:
    """Appends one video's frames, in time order, as atomically committed Parquet parts. A context manager.

    A part is committed after ``rows_per_part`` rows or ``frames_per_part`` frames, so memory is bounded and what was
    committed survives a crash. Leaving the context without an error commits the rest; with an error, nothing more.
    A video without a single object still gets one empty part: readers need its schema. ``num_parts``: how many stand
    there already.
    """

    def __init__(
        self, folder: Path, *, rows_per_part: int = 20_000, frames_per_part: int = 2_000, num_parts: int = 0
    ) -> None:
        self._folder = folder
        self._rows_per_part, self._frames_per_part = rows_per_part, frames_per_part
        self._pending: list[FrameResult] = []
        self._rows = 0
        self._parts = num_parts
        self._last_index = -1
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, result: FrameResult) -> None:
        """Append a frame; ``ValueError`` if it is not after the last one."""
        if result.index <= self._last_index:
            raise ValueError(f"frame {result.index} of {result.video_id} comes after frame {self._last_index}")
        self._last_index = result.index
        self._pending.append(result)
        self._rows += len(result)
        if self._rows >= self._rows_per_part or len(self._pending) >= self._frames_per_part:
            self.commit()

    def commit(self) -> None:
        """Commit what is pending as the next part."""
        if not self._rows and self._parts:
            self._pending.clear()
            return
        sink = pa.BufferOutputStream()
        pq.write_table(rows_table(self._pending), sink, compression="zstd")
        write_atomically(self._folder / f"part-{self._parts:05d}.parquet", sink.getvalue().to_pybytes())
        self._parts += 1
        self._rows = 0
        self._pending.clear()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()


class Twin(Protocol):
    """Another place that holds what is finished of a run."""

    def put(self, path: Path) -> None:
        """Make a file or folder of the run the same there; a folder that is not there is removed."""
        ...


class RunWriter:
    """Creates or continues a run folder and keeps its manifest."""

    def __init__(self, folder: Path, manifest: Manifest, twin: Twin | None = None) -> None:
        self.folder, self.manifest, self._twin = folder, manifest, twin
        self._rank: dict[str, int] = {}
        self._ranked: list[VideoEntry] = []
        """The list that ``_rank`` is of."""
        self._saved_s, self._save_took_s = 0.0, 0.0

    @classmethod
    def create(
        cls,
        folder: Path,
        manifest: Manifest,
        config_yaml: str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        twin: Twin | None = None,
    ) -> RunWriter:
        """Start a run, or continue one of the same plan. What is finished also goes to the ``twin``.

        Raises:
            RunExistsError: the folder has content and neither ``resume`` nor ``overwrite`` is set, or it is no run.
            UsageError: the folder cannot be written, or ``resume`` meets another plan (the message names what changed).
        """
        if check_reusable(folder, resume=resume, overwrite=overwrite):
            if resume and (folder / "manifest.json").exists():
                manifest = _continue(read_manifest(folder), manifest, _config_changes(folder, config_yaml))
            else:
                _remove_run(folder)
        writer = cls(folder, manifest, twin)
        try:
            (folder / "masklets").mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", config_yaml.encode())
            writer.put(folder / "config.yaml")
            writer.save()
        except OSError as error:
            raise UsageError("cannot write the run folder", str(folder), str(error.strerror or error)) from error
        return writer

    def save(self) -> None:
        """Write the manifest.

        Raises:
            RunError: there is no room for it; the old one stands.
        """
        started = time.monotonic()
        self.manifest.count()
        text = json.dumps(asdict(self.manifest), indent=1, ensure_ascii=False)
        try:
            write_atomically(self.folder / "manifest.json", (text + "\n").encode())
        except OSError as error:
            raise cannot_write(error, self.folder) from error
        self.put(self.folder / "manifest.json")
        self._saved_s = time.monotonic()
        self._save_took_s = self._saved_s - started

    @property
    def is_save_due(self) -> bool:
        """Whether the time since the last :meth:`save` is long beside what that took.

        Every save writes all of the manifest: with ten thousand videos, one after each of them would be the whole job.
        """
        return time.monotonic() - self._saved_s >= min(_PAUSE * self._save_took_s, _LONGEST_PAUSE_S)

    def put(self, path: Path) -> None:
        """Give the twin a file or folder of the run as it is now."""
        if self._twin is not None:
            self._twin.put(path)

    def finished(self, video_id: str) -> bool:
        """Whether this video needs no more work: done, or partial for a reason that a new try would meet again."""
        rank = self._ranks.get(video_id)
        return rank is not None and not has_more_to_do(self.manifest.videos[rank])

    def entry(self, video_id: str) -> VideoEntry:
        """The entry of a video that has ended; ``KeyError`` if it has not."""
        return self.manifest.videos[self._ranks[video_id]]

    @property
    def _ranks(self) -> dict[str, int]:
        """Where in the manifest each video is."""
        if self._ranked is not self.manifest.videos:
            self._ranked = self.manifest.videos
            self._rank = {entry.video_id: rank for rank, entry in enumerate(self._ranked)}
        return self._rank

    def video(self, video_id: str, *, rows_per_part: int, frames_per_part: int) -> VideoWriter:
        """A writer for this video; what an earlier try left of it is removed."""
        folder = self.folder / "masklets" / video_id
        shutil.rmtree(folder, ignore_errors=True)
        return VideoWriter(folder, rows_per_part=rows_per_part, frames_per_part=frames_per_part)

    def end_video(self, entry: VideoEntry) -> None:
        """List a video that has ended, and save."""
        self.list_video(entry)
        self.save()

    def list_video(self, entry: VideoEntry) -> None:
        """List a video that has ended, as of the next :meth:`save`; the rows of a failed one are removed."""
        if entry.status == "failed":
            shutil.rmtree(self.folder / "masklets" / entry.video_id, ignore_errors=True)
        self.put(self.folder / "masklets" / entry.video_id)
        if f"{LOGS}/" in (entry.error or ""):
            self.put(self.folder / LOGS)
        rank = self._ranks.setdefault(entry.video_id, len(self.manifest.videos))
        self.manifest.videos[rank : rank + 1] = [entry]


LOGS = "logs"
"""In a run: how each attempt at what was set aside failed."""
INTERRUPTED = "interrupted"
NO_ROOM = "cannot write"
"""How the errors begin that say nothing about the video: a resumed run tries again."""


def cannot_write(error: OSError, run: Path) -> RunError:
    """What to say when the run folder takes no more."""
    return RunError(f"{NO_ROOM}: {error.strerror or error}", str(run), "make room, then add --resume")


def may_go_on(error: str | None) -> bool:
    """Whether a video that ended with this error may do better the next time."""
    return (error or "").startswith((INTERRUPTED, NO_ROOM))


def has_more_to_do(entry: VideoEntry) -> bool:
    """Whether a resumed run tries this video, or pieces of it, again."""
    return entry.status == "failed" or bool(entry.missing) or (entry.status == "partial" and may_go_on(entry.error))


def check_reusable(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether something stands at ``folder`` that a run may continue or replace; false if there is nothing.

    Raises:
        RunExistsError: something stands there that may not be touched.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir():
        raise RunExistsError("the output is a file, not a folder", str(folder), "choose another -o")
    if not (folder / "manifest.json").exists() and not _only_ours(folder):
        raise RunExistsError("the folder exists and is not a run", str(folder), "choose another -o")
    if not resume and not overwrite and not _is_barren(folder):
        raise RunExistsError(
            "the run exists",
            str(folder),
            "add --resume to continue it, --overwrite to replace it, or choose another -o",
        )
    return True


def _is_barren(folder: Path) -> bool:
    """Whether a run stopped before it had anything to show, by a wrong option for example: nothing would be lost."""
    units, masklets = folder / ".units", folder / "masklets"
    if any(p.is_dir() and any(p.iterdir()) for p in (units, masklets)):
        return False
    return all(video.status == "failed" for video in read_manifest(folder).videos)


def _only_ours(folder: Path) -> bool:
    """Whether nothing but a run's own files stand here (a run killed before its first manifest)."""
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")} <= {"config.yaml", "masklets", LOGS}


def _remove_run(folder: Path) -> None:
    """Remove a run's own files, and nothing a user may have put beside them."""
    for name in ("manifest.json", "config.yaml", "overlay.mp4"):
        (folder / name).unlink(missing_ok=True)
    for name in ("masklets", "overlays", LOGS, ".units"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _config_changes(folder: Path, config_yaml: str) -> str:
    """What differs from the configuration the run was made with, as far as it can be told."""
    try:
        found = differences((folder / "config.yaml").read_text(encoding="utf-8"), config_yaml)
    except (OSError, ValueError, YAMLError):
        return ""
    more = [f"{len(found) - _CHANGES_SHOWN} more"] if len(found) > _CHANGES_SHOWN else []
    return ", ".join([*found[:_CHANGES_SHOWN], *more])


def _continue(old: Manifest, new: Manifest, config_changes: str) -> Manifest:
    """The old manifest, running again; refused when the plan changed."""
    is_scripted = new.model.get("id", "").startswith("detections:")
    changed = [
        name
        for name, a, b in (
            ("phrases", old.prompts, new.prompts),
            ("--not-text", old.not_prompts, new.not_prompts),
            (
                "detections" if is_scripted else "model weights",
                old.model.get("fingerprint"),
                new.model.get("fingerprint"),
            ),
            (f"configuration {config_changes}".rstrip(), old.config_digest, new.config_digest),
        )
        if a != b
    ]
    if changed:
        raise UsageError(
            "the run was made with another plan", f"changed: {', '.join(changed)}", "repeat its options, or --overwrite"
        )
    old.status, old.counts = "running", {}
    old.sources = list(dict.fromkeys([*old.sources, *new.sources]))
    return old


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        RunError: missing, damaged, or of a newer schema.
    """
    path = folder / "manifest.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = int(raw["schema_version"])
        if version > SCHEMA_VERSION:
            raise RunError("the run was written by a newer masklet", str(folder), "upgrade masklet")
        known = set(Manifest.__dataclass_fields__)
        entry_fields = set(VideoEntry.__dataclass_fields__)
        videos = [VideoEntry(**{k: v for k, v in e.items() if k in entry_fields}) for e in raw["videos"]]
        return Manifest(**{**{k: v for k, v in raw.items() if k in known}, "videos": videos})
    except FileNotFoundError:
        raise RunError(
            "not a run folder: it has no manifest.json", str(folder), "give the -o of `masklet track`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RunError("manifest.json is damaged", str(folder), f"{type(error).__name__}: {error}") from error


class Run:
    """A finished (or running) run folder, read without loading it whole."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def __repr__(self) -> str:
        counts = self.manifest.counts
        return f"Run({str(self.folder)!r}, videos={counts.get('videos', 0)}, masklets={counts.get('masklets', 0)})"

    @property
    def videos(self) -> list[VideoEntry]:
        """The videos that ended, failed ones included."""
        return list(self.manifest.videos)

    def video(self, video_id: str | None = None) -> VideoEntry:
        """This video's entry; without an id, the only one.

        Raises:
            UsageError: no such video, or several and no id (the message lists them).
        """
        ids = [v.video_id for v in self.manifest.videos]
        if video_id is None and len(ids) == 1:
            return self.manifest.videos[0]
        for entry in self.manifest.videos:
            if entry.video_id == video_id:
                return entry
        shown = ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")
        what = "the run has several videos" if video_id is None else f"no video {video_id!r} in this run"
        raise UsageError(what, str(self.folder), f"name one of: {shown}")

    def dataset(self, video_id: str | None = None) -> pads.Dataset:
        """All rows, or one video's, as a lazy :class:`pyarrow.dataset.Dataset`."""
        folder = self.folder / "masklets"
        return pads.dataset(folder / video_id if video_id else folder, schema=ROW_SCHEMA, format="parquet")

    def table(self, video_id: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows as one table in memory; leave out ``rle`` in ``columns`` where masks are not needed."""
        table = self.dataset(video_id).to_table(columns=list(columns) if columns else None)
        keys = [k for k in ("video_id", "frame", "masklet_id") if k in table.column_names]
        return table.sort_by([(k, "ascending") for k in keys]) if keys else table

    def parts(self, video_id: str) -> list[Path]:
        """This video's part files in time order."""
        return sorted((self.folder / "masklets" / video_id).glob("part-*.parquet"))

    def frames(self, video_id: str) -> Iterator[FrameResult]:
        """The frames with objects, in time order, one part in memory at a time.

        Raises:
            RunError: a part is damaged or its columns are not those of a run.
        """
        entry = self.video(video_id)
        size = (entry.height, entry.width)
        for path in self.parts(video_id):
            yield from frames_of_parts(_read_part(path), video_id, size)

    def masklets(
        self, *, video_id: str | None = None, prompt: str | None = None, min_frames: int = 1
    ) -> Iterator[Masklet]:
        """The masklets, by video and id; one video's rows are in memory at a time."""
        for entry in self.manifest.videos:
            if entry.status != "failed" and video_id in (None, entry.video_id):
                yield from _masklets_of(self.table(entry.video_id), entry.video_id, prompt, min_frames)

    def export(self, formats: str | Sequence[str], out: str | Path) -> list[ExportReport]:
        """Write this run in other tools' formats (``masklet export --list``); returns the files and what was lost."""
        from pipeline.sinks import export_run

        names = formats.split(",") if isinstance(formats, str) else list(formats)
        return export_run(self, names, Path(out))


def open_run(folder: str | Path) -> Run:
    """Open a run folder for reading.

    Raises:
        RunError: not a run folder, damaged, or written by a newer version.
    """
    return Run(Path(folder), read_manifest(Path(folder)))


def _read_part(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
        if table.schema.names != ROW_SCHEMA.names:
            raise RunError("a part has other columns than a run's", str(path), f"expected {ROW_SCHEMA.names}")
        table = table.cast(ROW_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise RunError("a part is damaged", str(path), "track this video again with --resume") from error
    if any(column.null_count for column in table.columns):
        raise RunError("a part has rows with empty fields", str(path), "track this video again with --resume")
    return table


def _rles(column: pa.ChunkedArray) -> list[RLE]:
    return [RLE((r["size"][0], r["size"][1]), r["counts"]) for r in column.to_pylist()]


def _xyxy(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([table[c].to_numpy() for c in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float32)


def frames_of_parts(table: pa.Table, video_id: str, size: tuple[int, int]) -> Iterator[FrameResult]:
    """The frames of rows that are sorted by frame."""
    frames = table["frame"].to_numpy()
    starts = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]]) if len(frames) else np.zeros(0, np.int64)
    for start, stop in zip(starts, [*starts[1:], len(frames)][: len(starts)], strict=True):
        rows = table.slice(start, stop - start)
        yield FrameResult(
            video_id,
            int(frames[start]),
            float(rows["pts_s"][0].as_py()),
            size,
            rows["masklet_id"].to_numpy().astype(np.int32),
            tuple(rows["prompt"].to_pylist()),
            rows["score"].to_numpy().astype(np.float32),
            _xyxy(rows),
            tuple(_rles(rows["rle"])),
        )


def _masklets_of(table: pa.Table, video_id: str, prompt: str | None, min_frames: int) -> Iterator[Masklet]:
    for masklet_id in sorted(pc.unique(table["masklet_id"]).to_pylist()):
        rows = table.filter(pc.equal(table["masklet_id"], masklet_id))
        phrase = rows["prompt"][0].as_py()
        if len(rows) < min_frames or prompt not in (None, phrase):
            continue
        yield Masklet(
            masklet_id,
            video_id,
            phrase,
            rows["frame"].to_numpy().astype(np.int64),
            rows["pts_s"].to_numpy().astype(np.float64),
            rows["score"].to_numpy().astype(np.float32),
            _xyxy(rows),
            tuple(_rles(rows["rle"])),
        )


def fps_fraction(entry: VideoEntry) -> Fraction | None:
    """The entry's frame rate as a number."""
    return Fraction(entry.fps) if entry.fps else None
