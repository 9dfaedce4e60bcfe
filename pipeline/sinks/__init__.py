"""Runs in other tools' formats, and other tools' files as runs. One module per format, imported when it is used.

``export_run`` writes every format into its own folder ``OUT/FORMAT/``; it appears by rename once it is whole.
``OUT/export.json`` says what was written and what each format could not hold.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.errors import FormatError, RunExistsError, UsageError

if TYPE_CHECKING:
    from pipeline.sinks.intake import Intake
    from pipeline.sinks.reading import CheckedRun
    from pipeline.store import Run


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """What ``masklet export --list`` says about a format."""

    target: str
    """``module:Class``, imported on use."""
    description: str
    """One line: what it is and who reads it."""
    loss: str = ""
    """What the format cannot hold; empty if it keeps every pixel, id, phrase and score."""
    needs_video: bool = False
    """Whether exporting reads the source video."""
    importable: bool = False
    """Whether ``masklet import`` reads it."""
    extra: str = ""
    """The optional extra it needs: ``pip install "masklet[EXTRA]"``."""


FORMATS: dict[str, FormatInfo] = {
    "coco": FormatInfo(
        "pipeline.sinks.coco:Coco",
        "COCO-VID JSON: images, annotations with RLE, video_id and track ids (pycocotools, TAO, mmtracking)",
        importable=True,
    ),
    "ytvis": FormatInfo(
        "pipeline.sinks.ytvis:YouTubeVIS",
        "YouTube-VIS results.json and annotations.json (TrackEval, VIS toolkits)",
        "times of variable-rate video",
        importable=True,
    ),
    "saco": FormatInfo(
        "pipeline.sinks.saco:SaCo",
        "SA-Co/VEval predictions.json and ground_truth.json (SAM 3's evaluation toolkit)",
        "times of variable-rate video",
        importable=True,
    ),
    "sav": FormatInfo(
        "pipeline.sinks.sav:SAV",
        "SA-V masklet JSON, one file per video, every frame (sam2's sav_dataset tools with annot_sample_rate=1)",
        "phrases and scores per frame go into keys of ours",
    ),
    "mot": FormatInfo(
        "pipeline.sinks.mot:Mot",
        "MOTChallenge text, one folder per phrase, one file per video (TrackEval, motmetrics)",
        "boxes only, to 0.01 px",
        importable=True,
    ),
    "mots": FormatInfo(
        "pipeline.sinks.mots:Mots",
        "MOTS text with RLE, one file per video (TrackEval)",
        "no scores; of masks that overlap, the higher score keeps the pixels",
        importable=True,
    ),
    "davis": FormatInfo(
        "pipeline.sinks.davis:Davis",
        "indexed PNGs with the DAVIS palette, one folder per video (DAVIS and VOS tools)",
        "no scores per frame; of masks that overlap, the higher score keeps the pixels",
        importable=True,
    ),
    "csv": FormatInfo("pipeline.sinks.csvfile:Csv", "one flat table with RLE as text (spreadsheets, R, pandas)"),
    "jsonl": FormatInfo("pipeline.sinks.jsonl:JsonLines", "a header line, then one line per frame, a file per video"),
    "supervision": FormatInfo(
        "pipeline.sinks.supervision:Supervision",
        "supervision's JSON sink layout, one row per object and frame (supervision, Roboflow tools)",
        extra="supervision",
    ),
    "parquet": FormatInfo(
        "pipeline.sinks.parquet:Parquet", "one flat Parquet file, masklet by masklet (pandas, Polars, DuckDB, Spark)"
    ),
    "burst": FormatInfo(
        "pipeline.sinks.burst:Burst",
        "BURST JSON, all videos in one file (TrackEval)",
        "categories are numbers of the run, not TAO's",
    ),
    "cvat": FormatInfo(
        "pipeline.sinks.cvat:Cvat",
        "CVAT for video 1.1 XML, polygon tracks, one file per video (CVAT, datumaro, FiftyOne)",
        "polygons within 1 px; the report has the IoU",
        importable=True,
    ),
    "labelstudio": FormatInfo(
        "pipeline.sinks.labelstudio:LabelStudio",
        "Label Studio tasks with predicted video rectangles, and their labelling config",
        "boxes only",
    ),
    "yolo": FormatInfo(
        "pipeline.sinks.yolo:Yolo",
        "segmentation label files and data.yaml (ultralytics)",
        "polygons within 1 px; ids and scores stand in tracks.csv",
    ),
    "fiftyone": FormatInfo(
        "pipeline.sinks.fiftyone:FiftyOne", "a dataset folder with masks on frames (FiftyOneDataset)"
    ),
    "rerun": FormatInfo(
        "pipeline.sinks.rerun:Rerun",
        "a .rrd recording per video: label images, boxes, scores over time (Rerun viewer)",
        "of masks that overlap, the higher score keeps the pixels",
        extra="rerun",
    ),
    "cutout": FormatInfo(
        "pipeline.sinks.cutout:CutoutWebM",
        "the object on a transparent ground, one WebM (VP9 with alpha) per masklet, cropped to its life",
        "colours are compressed; no scores",
        needs_video=True,
    ),
    "cutout-png": FormatInfo(
        "pipeline.sinks.cutout:CutoutPng",
        "the same as a sequence of RGBA PNGs per masklet, without compression loss",
        "no scores",
        needs_video=True,
    ),
    "geojson": FormatInfo(
        "pipeline.sinks.geojson:GeoJson",
        "polygons with holes in pixels, one feature per masklet and frame (shapely, GIS tools)",
        "polygons within 1 px; the report has the IoU",
    ),
}
"""Every format by name, in the order in which they are listed."""


class Exporter(Protocol):
    """Writes one format."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Write ``run`` into the empty ``folder``; return one line for each thing the format could not hold."""
        ...


class Importer(Protocol):
    """Reads one format."""

    def read(self, path: Path, intake: Intake) -> None:
        """Hand every video and mask in the file or folder ``path`` to ``intake``."""
        ...


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What one format's export did."""

    format: str
    files: tuple[Path, ...]
    """What was written, at most :data:`MAX_FILES_LISTED` of them."""
    num_files: int
    notes: tuple[str, ...]
    """What the format could not hold, with numbers; empty if nothing was lost."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What one import did."""

    format: str
    folder: Path
    """The run folder."""
    num_videos: int
    num_masklets: int
    notes: tuple[str, ...]
    """What was assumed or left out."""


MAX_FILES_LISTED = 1_000
"""Formats with a file per frame write hundreds of thousands: a report need not hold their names."""


def format_info(name: str) -> FormatInfo:
    """The format of this name.

    Raises:
        UsageError: there is none (the message lists them).
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}", "", f"choose from {', '.join(FORMATS)}")
    return FORMATS[name]


def export_run(run: Run, formats: Sequence[str], out: Path) -> list[ExportReport]:
    """Write ``run`` in these formats, each into ``out/FORMAT/``; an earlier export there is replaced.

    Raises:
        UsageError: an unknown format, or a folder in the way that no export wrote.
        FormatError: the run cannot be written in a format; nothing of that format is left behind.
        RunError: the run's rows are damaged.
        SourceError: a format with pictures misses the source video.
    """
    names = list(dict.fromkeys(name.strip() for name in formats if name.strip()))
    if not names:
        raise UsageError("no format was named", "", f"choose from {', '.join(FORMATS)}")
    exporters = [(name, cast(Exporter, _load(name))) for name in names]
    done = _read_reports(out)
    for name in names:
        if (out / name).exists() and name not in done:
            raise UsageError("the folder exists and no export wrote it", str(out / name), "choose another -o")
    reports = []
    for name, exporter in exporters:
        reports.append(_export(run, name, exporter, out))
        done[name] = {"run": str(run.folder), **_plain(reports[-1], out)}
        _replace_text(out / "export.json", json.dumps(done, indent=1, ensure_ascii=False) + "\n")
    return reports


def _load(name: str) -> object:
    """An instance of the format's class."""
    info = format_info(name)
    module, _, attribute = info.target.partition(":")
    try:
        return getattr(import_module(module), attribute)()
    except ImportError as error:
        if not info.extra:
            raise
        raise UsageError(
            f"the format {name!r} needs an optional package", str(error.name), f'pip install "masklet[{info.extra}]"'
        ) from error


def _export(run: Run, name: str, exporter: Exporter, out: Path) -> ExportReport:
    from pipeline.sinks.reading import CheckedRun

    with _scratch(out, name) as scratch:
        folder = scratch / "out"
        folder.mkdir()
        checked = CheckedRun(run, scratch)
        try:
            notes = [*checked.notes, *exporter.export(checked, folder)]
        except OSError as error:
            raise FormatError(f"cannot write {name}", str(out / name), str(error.strerror or error)) from error
        relative = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        _replace_folder(folder, out / name)
    files = tuple(out / name / path for path in relative[:MAX_FILES_LISTED])
    return ExportReport(name, files, len(relative), tuple(notes))


def _plain(report: ExportReport, out: Path) -> dict[str, Any]:
    """The report for ``export.json``, its paths relative to it."""
    plain = asdict(report)
    plain.pop("format")
    plain["files"] = [str(path.relative_to(out)) for path in report.files]
    return plain


def _read_reports(out: Path) -> dict[str, Any]:
    """What earlier exports into ``out`` wrote, by format."""
    try:
        raw = json.loads((out / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def import_file(
    path: Path,
    format: str,  # noqa: A002  # the word users know from --format
    out: Path,
    *,
    text: str = "object",
    size: tuple[int, int] | None = None,
    fps: Fraction | None = None,
    overwrite: bool = False,
) -> ImportReport:
    """Read a foreign file, folder or zip as a run folder; masklet ids are given anew, by first appearance.

    Args:
        path: results or ground truth of another tool.
        format: a name in :data:`FORMATS` that is importable.
        out: the run folder to write; it appears by rename once it is whole.
        text: the phrase of rows whose format names none.
        size: ``(width, height)`` where the format states none.
        fps: the frame rate where the format states none.
        overwrite: replace a run that is there.

    Raises:
        UsageError: an unknown or export-only format, or ``path`` does not exist.
        RunExistsError: ``out`` exists.
        FormatError: the file is malformed; nothing is left behind.
    """
    from pipeline.sinks.intake import Intake
    from pipeline.sinks.spill import Spill

    if not format_info(format).importable:
        able = ", ".join(name for name, info in FORMATS.items() if info.importable)
        raise UsageError(f"{format} can be exported but not imported", "", f"choose from {able}")
    if not path.exists():
        raise UsageError("no such file or folder", str(path))
    _check_free(out, overwrite=overwrite)
    importer = cast(Importer, _load(format))
    with _scratch(out.parent, out.name) as scratch, Spill(scratch / "rows.sqlite") as spill:
        intake = Intake(spill, str(path), text=text, size=size, fps=fps)
        importer.read(_unzipped(path, scratch / "zip"), intake)
        manifest = intake.write(scratch / "run", format)
        _replace_folder(scratch / "run", out)
    counts = manifest.counts
    return ImportReport(format, out, counts.get("videos", 0), counts.get("masklets", 0), tuple(intake.notes))


def _check_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "manifest.json").exists():
        raise RunExistsError("the output exists and is not a run", str(out), "choose another -o")
    if not overwrite:
        raise RunExistsError("the run exists", str(out), "add --overwrite to replace it, or choose another -o")


@contextmanager
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder on the file system of the output, so that a rename can finish the work."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    except OSError as error:
        raise UsageError("cannot write the output", str(parent), str(error.strerror or error)) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """Put ``source`` at ``target``; what was there is kept until then."""
    old = source.parent / "old"
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


MAX_UNZIPPED_BYTES = 64 << 30
"""An archive that says it holds more is taken for a zip bomb."""


def _unzipped(path: Path, folder: Path) -> Path:
    """``path``, or where its content lies if it is a zip.

    Raises:
        FormatError: damaged, too large, or a member that would land outside the folder.
    """
    if path.is_dir() or not zipfile.is_zipfile(path):
        return path
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                parts = Path(member.filename.replace("\\", "/")).parts
                if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in member.filename:
                    raise FormatError(f"the zip's member {member.filename[:60]!r} leaves its folder", str(path))
            if sum(member.file_size for member in archive.infolist()) > MAX_UNZIPPED_BYTES:
                raise FormatError("the zip holds more than can be believed", str(path), "unpack it yourself")
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise FormatError("the zip is damaged", str(path), str(error)) from error
    return folder
