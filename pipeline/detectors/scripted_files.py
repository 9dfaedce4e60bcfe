"""Detection files of other tools as rows, checked as they are read; see :mod:`pipeline.detectors.scripted`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from pycocotools import mask as coco_mask

from pipeline.errors import FormatError, UsageError
from pipeline.telemetry import LOGGER
from pipeline.types import RLE

ANY_VIDEO = ""
"""The video of rows that name none."""
_MAX_FRAME = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DetectionRow:
    """One detection; it has a box, a mask, or both."""

    frame: int
    """0-based."""
    score: float
    """0..1"""
    xyxy: tuple[float, float, float, float] | None
    """Source pixels, x2/y2 exclusive."""
    rle: RLE | None = None
    phrase: str | None = None
    """``None``: the format names none."""


Rows = Iterator[tuple[str, DetectionRow]]
"""``(video_id, row)``"""


def read_detections(path: Path) -> list[tuple[str, DetectionRow]]:
    """All rows of a file or folder with the video each belongs to (:data:`ANY_VIDEO` where it names none).

    Raises:
        UsageError: it does not exist. FormatError: it is malformed (the message names the place).
    """
    if not path.exists():
        raise UsageError("no such file or folder", str(path), "name a MOT text, COCO JSON or Parquet file")
    return _probabilities(list(_read(path)), path)


def _read(path: Path) -> Rows:
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix.lower() == ".json":
        yield from _read_coco(path)
    elif path.suffix.lower() in (".parquet", ".pq"):
        yield from _read_parquet(path)
    else:
        yield from ((ANY_VIDEO, row) for row in _read_mot(path))


def _read_folder(folder: Path) -> Rows:
    if (folder / "manifest.json").is_file():
        folder = folder / "masklets"
    if any(folder.rglob("*.parquet")):
        yield from _read_parquet(folder)
        return
    files = sorted(p for p in folder.rglob("*.txt") if p.parent.name != "gt")
    if not files:
        raise FormatError("the folder holds neither .txt nor .parquet files", str(folder))
    seen: set[str] = set()
    for file in files:
        video_id = file.parent.parent.name if file.parent.name == "det" else file.stem
        if video_id in seen:
            raise FormatError(f"two files have detections of {video_id}", str(folder), "name one of them")
        seen.add(video_id)
        yield from ((video_id, row) for row in _read_mot(file))


def _probabilities(rows: list[tuple[str, DetectionRow]], path: Path) -> list[tuple[str, DetectionRow]]:
    """Scores as 0..1. Confidences of another kind (ACF's, say) are stretched to it, lowest to highest, and said so."""
    low = min((row.score for _, row in rows), default=0.0)
    high = max((row.score for _, row in rows), default=1.0)
    if low >= 0 and high <= 1:
        return rows
    LOGGER.warning("%s: scores reach from %.4g to %.4g; they are stretched to 0..1", path, low, high)
    span = max(high - low, 1e-12)
    return [(v, DetectionRow(r.frame, (r.score - low) / span, r.xyxy, r.rle, r.phrase)) for v, r in rows]


def _read_mot(path: Path) -> Iterator[DetectionRow]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            for number, fields in enumerate(csv.reader(lines), start=1):
                if fields and any(f.strip() for f in fields):
                    yield _mot_row(fields, f"{path}, line {number}")
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise FormatError("not a MOTChallenge text file", str(path), str(error).splitlines()[0]) from error


def _mot_row(fields: Sequence[str], where: str) -> DetectionRow:
    if not 6 <= len(fields) <= 10:
        raise FormatError(f"a row has {len(fields)} columns instead of 6 to 10", where)
    frame, left, top, width, height = (_number(fields[i], where) for i in (0, 2, 3, 4, 5))
    score = _number(fields[6], where) if len(fields) > 6 else 1.0
    return DetectionRow(_frame(frame, where, first=1), score, _xyxy(left, top, width, height, where))


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise FormatError(f"a number is expected, but there is {str(value)[:40]!r}", where)
    return number


def _frame(value: Any, where: str, first: int = 0) -> int:
    number = _number(value, where)
    if number != int(number) or not first <= number <= _MAX_FRAME:
        raise FormatError(f"frame {str(value)[:40]} is not a whole number from {first}", where)
    return int(number) - first


def _xyxy(left: float, top: float, width: float, height: float, where: str) -> tuple[float, float, float, float]:
    if width <= 0 or height <= 0:
        raise FormatError(f"a box is {width:g} x {height:g} pixels", where)
    return left, top, left + width, top + height


def _read_coco(path: Path) -> Rows:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise FormatError("not a JSON file", str(path), str(error).splitlines()[0][:120]) from error
    whole = isinstance(document, dict)
    annotations = document.get("annotations") if whole else document
    if not isinstance(annotations, list):
        raise FormatError("neither a list of COCO results nor an object with annotations", str(path))
    names = _Coco(document if whole else {}, str(path))
    for number, annotation in enumerate(annotations):
        yield names.row(annotation, f"{path}, detection {number}")


class _Coco:
    """What a COCO document says about images, videos and categories."""

    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        self._images = self._by_id(document, "images", where)
        videos = self._by_id(document, "videos", where)
        self._videos = {i: Path(str(v.get("name", i))).stem for i, v in videos.items()}
        categories = self._by_id(document, "categories", where)
        self._categories = {i: str(c.get("name", f"category {i}")) for i, c in categories.items()}

    @staticmethod
    def _by_id(document: Mapping[str, Any], member: str, where: str) -> dict[Any, Mapping[str, Any]]:
        rows = document.get(member, [])
        if not isinstance(rows, list) or not all(
            isinstance(r, dict) and isinstance(r.get("id"), int | str) for r in rows
        ):
            raise FormatError(f"{member} must be a list of objects with an id", where)
        return {r["id"]: r for r in rows}

    def row(self, annotation: Any, where: str) -> tuple[str, DetectionRow]:
        if not isinstance(annotation, dict):
            raise FormatError("a detection must be an object", where)
        video, frame = self._place(annotation, where)
        box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
        xyxy = None
        if box:
            if not isinstance(box, list) or len(box) != 4:
                raise FormatError("bbox must be [x, y, width, height]", where)
            left, top, width, height = (_number(v, where) for v in box)
            xyxy = _xyxy(left, top, width, height, where)
        rle = _coco_rle(segmentation, where) if segmentation else None
        if xyxy is None and rle is None:
            raise FormatError("a detection has neither bbox nor segmentation", where)
        score = _number(annotation.get("score", 1.0), where)
        return video, DetectionRow(frame, score, xyxy, rle, self._phrase(annotation))

    def _place(self, annotation: Mapping[str, Any], where: str) -> tuple[str, int]:
        if not self._images:
            return ANY_VIDEO, _frame(annotation.get("image_id"), where)
        number = annotation.get("image_id")
        image = self._images.get(number) if isinstance(number, int | str) else None
        if image is None:
            raise FormatError(f"image {str(number)[:40]!r} is not listed", where)
        frame = _frame(image.get("frame_id", image.get("frame_index", number)), where)
        return self._videos.get(image.get("video_id"), ANY_VIDEO), frame

    def _phrase(self, annotation: Mapping[str, Any]) -> str | None:
        named = annotation.get("noun_phrase") or annotation.get("category_name")
        if isinstance(named, str):
            return named
        category = annotation.get("category_id")
        if not self._categories:
            return None
        return self._categories.get(category, f"category {category}")


def _coco_rle(segmentation: Any, where: str) -> RLE:
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("size"), list):
        raise FormatError("a segmentation must be run lengths", where, "polygons are not supported here")
    counts, size = segmentation.get("counts"), segmentation["size"]
    if len(size) != 2 or not all(isinstance(s, int) and 0 < s <= 65_535 for s in size):
        raise FormatError(f"a mask's size is {str(size)[:40]}", where)
    if isinstance(counts, list):
        if not counts or not all(isinstance(c, int) and c >= 0 for c in counts) or sum(counts) != size[0] * size[1]:
            raise FormatError("the runs of a mask do not fill its frame", where)
        counts = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    if not isinstance(counts, str | bytes):
        raise FormatError("the counts of a mask must be text or a list", where)
    return RLE((size[0], size[1]), counts.encode("ascii", "replace") if isinstance(counts, str) else counts)


_BOX_COLUMNS = ("x1", "y1", "x2", "y2")


def _read_parquet(path: Path) -> Rows:
    try:
        dataset = pads.dataset(path, format="parquet")
        missing = [c for c in ("frame", *_BOX_COLUMNS) if c not in dataset.schema.names]
        if missing:
            raise FormatError(
                f"columns are missing: {', '.join(missing)}", str(path), "frame, x1, y1, x2, y2 are needed"
            )
        for batch in dataset.to_batches():
            for record in batch.to_pylist():
                yield _parquet_row(record, str(path))
    except (pa.ArrowException, OSError) as error:
        raise FormatError("not a Parquet file that can be read", str(path), str(error).splitlines()[0][:120]) from error


def _parquet_row(record: Mapping[str, Any], path: str) -> tuple[str, DetectionRow]:
    where = f"{path}, frame {record['frame']}"
    x1, y1, x2, y2 = (_number(record[c], where) for c in _BOX_COLUMNS)
    rle = record.get("rle")
    row = DetectionRow(
        _frame(record["frame"], where),
        _number(record.get("score", 1.0), where),
        _xyxy(x1, y1, x2 - x1, y2 - y1, where),
        None if rle is None else RLE((rle["size"][0], rle["size"][1]), bytes(rle["counts"])),
        record.get("prompt"),
    )
    return str(record.get("video_id") or ANY_VIDEO), row
