"""COCO for video: per-frame rows with ``video_id`` and track ids, as TAO, mmtracking and pycocotools read them.

``coco/annotations.json`` holds all videos. ``images`` lists every source frame, so that frames without objects are
there too; ``frame_id`` is the 0-based source frame. Both ``track_id`` (TAO) and ``instance_id`` (mmtracking) are
written, unique over the file as those readers want; ``masklet_id`` is ours, per video.

Schema: COCO-VID in mmtracking ``tests/data/demo_cocovid_data``, TAO's annotations, COCO's "data format" page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError
from pipeline.results import FrameResult
from pipeline.sinks.intake import Intake
from pipeline.sinks.jsonio import read_elements, write_object
from pipeline.sinks.reading import Categories, CheckedRun, short, xywh
from pipeline.sinks.segmentation import real, rle_of, whole
from pipeline.store import VideoEntry


class Coco:
    """Writes and reads ``annotations.json``."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """One file, written as the rows stream by."""
        categories = run.categories()
        members = {
            "info": {"description": "masklets", "version": "1.0"},
            "licenses": [],
            "videos": (_video(i, entry) for i, entry in enumerate(run.videos, start=1)),
            "images": _images(run.videos),
            "annotations": _annotations(run, categories),
            "categories": categories.coco(),
        }
        write_object(folder / "annotations.json", members)
        return []

    def read(self, path: Path, intake: Intake) -> None:
        """Videos, images and categories first, then the annotations in a second pass: any order, any length."""
        file = the_json(path)
        index = _Index(str(file))
        for member, element in read_elements(file):
            index.take(member, element)
        index.declare(intake)
        for member, element in read_elements(file):
            if member == "annotations":
                index.annotation(element, intake)


def the_json(path: Path) -> Path:
    """The file itself, or the only JSON file in a folder.

    Raises:
        FormatError: none, or several.
    """
    if path.is_file():
        return path
    found = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
    if len(found) != 1:
        raise FormatError(f"the folder holds {len(found)} JSON files", str(path), "name the one to import")
    return found[0]


def _video(number: int, entry: VideoEntry) -> dict[str, Any]:
    return {
        "id": number,
        "name": entry.video_id,
        "width": entry.width,
        "height": entry.height,
        "length": entry.num_frames,
        "fps": entry.fps,
        "uri": entry.uri,
    }


def frame_file(entry: VideoEntry, frame: int) -> str:
    """The name that frame lists give a frame: five digits, 0-based, as DAVIS and YouTube-VIS name theirs."""
    return f"{entry.video_id}/{frame:05d}.jpg"


def _images(videos: list[VideoEntry]) -> Iterator[dict[str, Any]]:
    first = 1
    for number, entry in enumerate(videos, start=1):
        for frame in range(entry.num_frames):
            yield {
                "id": first + frame,
                "video_id": number,
                "frame_id": frame,
                "file_name": frame_file(entry, frame),
                "width": entry.width,
                "height": entry.height,
            }
        first += entry.num_frames


def _annotations(run: CheckedRun, categories: Categories) -> Iterator[dict[str, Any]]:
    ids = _Counter()
    first_image, first_track = 1, 0
    for number, entry in enumerate(run.videos, start=1):
        last_track = 0
        for result in run.frames(entry):
            last_track = max(last_track, *result.masklet_id.tolist(), 0)
            common = {"image_id": first_image + result.index, "video_id": number, "pts_s": result.pts_s}
            yield from _rows(result, common, first_track, ids, categories)
        first_image += entry.num_frames
        first_track += last_track


@dataclass(slots=True)
class _Counter:
    value: int = 0

    def next(self) -> int:
        self.value += 1
        return self.value


def _rows(
    result: FrameResult, common: dict[str, Any], first_track: int, ids: _Counter, categories: Categories
) -> Iterator[dict[str, Any]]:
    areas, boxes = result.area_px().tolist(), result.xyxy.tolist()
    for i, masklet_id in enumerate(result.masklet_id.tolist()):
        rle = result.rles[i]
        yield {
            "id": ids.next(),
            **common,
            "category_id": categories.id_of(result.prompt[i]),
            "track_id": first_track + masklet_id,
            "instance_id": first_track + masklet_id,
            "masklet_id": masklet_id,
            "bbox": xywh(boxes[i]),
            "area": areas[i],
            "iscrowd": 0,
            "score": short(result.score[i]),
            "segmentation": {"size": list(rle.size), "counts": rle.counts.decode("ascii")},
        }


@dataclass(slots=True)
class _Index:
    """What annotations refer to: videos, images and categories by id."""

    where: str
    videos: dict[int, dict[str, Any]] = field(default_factory=dict)
    images: dict[int, tuple[int, int]] = field(default_factory=dict)
    """``(video, frame)``"""
    lengths: dict[int, int] = field(default_factory=dict)
    """Frames that the images of a video need."""
    categories: dict[int, str] = field(default_factory=dict)
    has_annotations: bool = False

    def take(self, member: str, element: Any) -> None:
        if member == "annotations":
            self.has_annotations = True
        if member in ("videos", "images", "categories"):
            record = object_of(element, f"an element of {member}", self.where)
            number = whole(record.get("id"), f"the id in {member}", self.where)
            if number in getattr(self, member):
                raise FormatError(f"id {number} is there twice in {member}", self.where)
            self._put(member, number, record)

    def _put(self, member: str, number: int, record: dict[str, Any]) -> None:
        if member == "videos":
            self.videos[number] = record
        elif member == "categories":
            self.categories[number] = record.get("name")  # type: ignore[assignment]  # checked by add_prompt
        else:
            self.images[number] = self._image(record)

    def _image(self, record: dict[str, Any]) -> tuple[int, int]:
        """The video and frame of an image; images without a video are the frames of one unnamed video."""
        video = whole(record.get("video_id", 0), "an image's video_id", self.where)
        frame = record.get("frame_id", record.get("frame_index"))
        number = self.lengths.get(video, 0) if frame is None else whole(frame, "an image's frame_id", self.where)
        self.lengths[video] = max(self.lengths.get(video, 0), number + 1)
        if video not in self.videos and "video_id" not in record:
            self.videos[video] = {"name": Path(self.where).stem, **{k: record.get(k) for k in ("width", "height")}}
        for side in ("width", "height"):
            if video in self.videos:
                self.videos[video].setdefault(side, record.get(side))
        return video, number

    def declare(self, intake: Intake) -> None:
        if not self.videos and (self.images or self.has_annotations):
            raise FormatError("the file has no videos", self.where, "is it in another format?")
        for name in self.categories.values():
            intake.add_prompt(name)
        for number, record in self.videos.items():
            length = max(whole(record.get("length", 0), "a video's length", self.where), self.lengths.get(number, 0))
            intake.add_video(
                number,
                str(record.get("name", record.get("file_name", f"video{number}"))),
                width=record.get("width"),
                height=record.get("height"),
                num_frames=length,
                fps=rate_in(record.get("fps"), self.where),
                uri=str(record.get("uri", "")),
            )

    def annotation(self, element: Any, intake: Intake) -> None:
        record = object_of(element, "an annotation", self.where)
        image = whole(record.get("image_id"), "an annotation's image_id", self.where)
        if image not in self.images:
            raise FormatError(f"an annotation belongs to image {image}, which is not listed", self.where)
        video, frame = self.images[image]
        track = record.get("track_id", record.get("instance_id"))
        if track is None:
            raise FormatError("an annotation has no track_id or instance_id", self.where, "plain COCO has no tracks")
        where = f"{self.where}, annotation {record.get('id')}"
        rle = rle_of(record.get("segmentation"), intake.size(video), where)
        if rle is None:
            intake.count("annotations without a mask were left out")
            return
        intake.add(
            video,
            frame,
            whole(track, "a track id", where),
            category_name(self.categories, record.get("category_id"), where),
            real(record.get("score", 1.0), "a score", where),
            rle,
            xyxy=box_in(record.get("bbox"), where),
            pts_s=real(record["pts_s"], "pts_s", where) if "pts_s" in record else None,
        )


def object_of(element: Any, what: str, where: str) -> dict[str, Any]:
    """``element``, which must be a JSON object.

    Raises:
        FormatError: it is not.
    """
    if not isinstance(element, dict):
        raise FormatError(f"{what} must be an object, but got {str(element)[:40]!r}", where)
    return element


def category_name(categories: dict[int, str], number: Any, where: str) -> str:
    """The phrase of a category id.

    Raises:
        FormatError: the id is not listed.
    """
    key = whole(number, "a category_id", where)
    if key not in categories:
        raise FormatError(f"category {key} is not listed", where)
    return categories[key]


def box_in(bbox: Any, where: str) -> list[float] | None:
    """A COCO ``[x, y, w, h]`` as ``xyxy``, or ``None`` if there is none.

    Raises:
        FormatError: not four finite numbers.
    """
    if bbox is None:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise FormatError(f"a bbox must be [x, y, width, height], but got {str(bbox)[:40]}", where)
    x, y, w, h = (real(v, "a bbox coordinate", where) for v in bbox)
    return [x, y, x + w, y + h]


def rate_in(fps: Any, where: str) -> Fraction | None:
    """A frame rate from ``30``, ``29.97`` or ``"30000/1001"``.

    Raises:
        FormatError: it is not a positive number.
    """
    if fps in (None, "", 0):
        return None
    try:
        rate = Fraction(str(fps))
        if 0 < rate < 100_000:
            return rate.limit_denominator(1_000_000)
    except (ValueError, ZeroDivisionError):
        pass
    raise FormatError(f"the frame rate must be a positive number, but got {str(fps)[:40]!r}", where)
