"""CVAT for video 1.1: ``cvat/VIDEO.xml``, a polygon track per masklet, which CVAT imports.

CVAT has no mask tracks: its importer keeps only the first shape of a track that starts with a mask. A polygon is one
ring, so pieces and holes are joined by bridges of no width. Every frame is a key frame, and an ``outside`` copy ends
each stretch, or CVAT would interpolate. CVAT gives tracks numbers of its own: ours stand in the attribute
``masklet_id``, the score in ``score``.

Reading takes polygons, boxes and masks of tracks. Documents with a DOCTYPE are refused: no CVAT writes one, and
entities could blow up the memory.

Schema: CVAT's ``xml_format.md`` and ``dataset_manager/formats/cvat.py``.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from xml.parsers import expat
from xml.sax.saxutils import XMLGenerator

import numpy as np

from pipeline.errors import FormatError
from pipeline.sinks.coco import rate_in
from pipeline.sinks.intake import Intake
from pipeline.sinks.polygons import Ring, Tracer
from pipeline.sinks.reading import CheckedRun, short
from pipeline.sinks.segmentation import box_rle, from_runs, polygons_rle, real, whole
from pipeline.store import VideoEntry
from pipeline.types import RLE, Masklet

_CONTROL = {i: "\ufffd" for i in range(32) if chr(i) not in "\t\n\r"}
"""XML 1.0 has no way to write these."""


class Cvat:
    """Writes and reads CVAT XML."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """One file per video, masklet by masklet."""
        tracer = Tracer()
        for entry in run.videos:
            with open(folder / f"{entry.video_id}.xml", "w", encoding="utf-8", newline="\n") as file:
                _Document(file, entry, tracer).write(run)
        return tracer.notes()

    def read(self, path: Path, intake: Intake) -> None:
        """Every XML file at or under ``path``, a video each."""
        files = [path] if path.is_file() else sorted(path.rglob("*.xml"))
        if not files:
            raise FormatError("the folder holds no XML file", str(path))
        for file in files:
            _Reader(file, intake).read()


class _Document:
    """Writes one video's file."""

    def __init__(self, file: Any, entry: VideoEntry, tracer: Tracer) -> None:
        self._xml = XMLGenerator(file, "utf-8", short_empty_elements=True)
        self._entry, self._tracer = entry, tracer

    def write(self, run: CheckedRun) -> None:
        labels = dict.fromkeys(run.prompts)
        for result in run.frames(self._entry):
            labels |= dict.fromkeys(result.prompt)
        self._xml.startDocument()
        self._open("annotations")
        self._leaf("version", "1.1")
        self._meta(list(labels))
        for number, masklet in enumerate(run.masklets(self._entry)):
            self._track(number, masklet)
        self._close("annotations")
        self._xml.endDocument()

    def _open(self, name: str, /, **attributes: object) -> None:
        values = {key: str(value).translate(_CONTROL) for key, value in attributes.items()}
        self._xml.startElement(name, cast(Any, values))

    def _close(self, name: str) -> None:
        self._xml.endElement(name)
        self._xml.ignorableWhitespace("\n")

    def _leaf(self, name: str, text: object, /, **attributes: object) -> None:
        self._open(name, **attributes)
        self._xml.characters(str(text).translate(_CONTROL))
        self._close(name)

    def _meta(self, labels: list[str]) -> None:
        entry = self._entry
        self._open("meta")
        self._open("task")
        self._leaf("name", entry.video_id)
        self._leaf("size", entry.num_frames)
        self._leaf("mode", "interpolation")
        self._leaf("start_frame", 0)
        self._leaf("stop_frame", max(entry.num_frames - 1, 0))
        self._leaf("fps", entry.fps or "")
        self._open("labels")
        for label in labels:
            self._label(label)
        self._close("labels")
        self._open("original_size")
        self._leaf("width", entry.width)
        self._leaf("height", entry.height)
        self._close("original_size")
        self._leaf("source", entry.uri)
        self._close("task")
        self._close("meta")

    def _label(self, label: str) -> None:
        self._open("label")
        self._leaf("name", label)
        self._leaf("type", "polygon")
        self._open("attributes")
        for name, mutable in (("masklet_id", "False"), ("score", "True")):
            self._open("attribute")
            for key, value in (("name", name), ("mutable", mutable), ("input_type", "text")):
                self._leaf(key, value)
            self._leaf("default_value", "")
            self._leaf("values", "")
            self._close("attribute")
        self._close("attributes")
        self._close("label")

    def _track(self, number: int, masklet: Masklet) -> None:
        self._open("track", id=number, label=masklet.prompt, source="auto")
        frames = masklet.index.tolist()
        for i, frame in enumerate(frames):
            ring = self._tracer.ring(masklet.masks[i])
            attributes = {"masklet_id": masklet.masklet_id, "score": short(masklet.score[i])}
            self._polygon(frame, ring, attributes, outside=0)
            ends = i + 1 == len(frames) or frames[i + 1] != frame + 1
            if ends and frame + 1 < self._entry.num_frames:
                self._polygon(frame + 1, ring, attributes, outside=1)
        self._close("track")

    def _polygon(self, frame: int, ring: Ring, attributes: dict[str, Any], *, outside: int) -> None:
        points = ";".join(f"{x}.0,{y}.0" for x, y in ring.tolist())
        self._open("polygon", frame=frame, keyframe=1, outside=outside, occluded=0, points=points, z_order=0)
        for name, value in attributes.items():
            self._leaf("attribute", value, name=name)
        self._close("polygon")


SHAPES = ("polygon", "box", "mask")
"""What can be read; other shapes have no area, or none that is theirs alone."""
OTHER_SHAPES = ("polyline", "points", "ellipse", "cuboid", "skeleton")


@dataclass(slots=True)
class _Track:
    number: int
    label: str
    key: Hashable


@dataclass(slots=True)
class _Shape:
    kind: str
    attributes: dict[str, str]
    line: int
    values: dict[str, str] = field(default_factory=dict)
    """The ``attribute`` elements inside."""


class _Reader:
    """Follows one document, element by element; only the current shape is in memory."""

    def __init__(self, file: Path, intake: Intake) -> None:
        self._file, self._intake = file, intake
        self._path: list[str] = []
        self._text: list[str] = []
        self._meta: dict[str, str] = {}
        self._labels: list[str] = []
        self._track: _Track | None = None
        self._shape: _Shape | None = None
        self._attribute = ""
        self._num_tracks = 0
        self._last: dict[Hashable, tuple[int, bool]] = {}
        self._declared = False
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append

    def read(self) -> None:
        try:
            with open(self._file, "rb") as file:
                self._parser.ParseFile(file)
        except expat.ExpatError as error:
            raise FormatError("not valid XML", str(self._file), str(error)) from error
        except OSError as error:
            raise FormatError("cannot read the file", str(self._file), str(error.strerror or error)) from error
        self._declare()

    def _where(self) -> str:
        line = self._shape.line if self._shape else self._parser.CurrentLineNumber
        return f"{self._file}, line {line}"

    def _doctype(self, *_: object) -> None:
        raise FormatError("an XML document with a DOCTYPE is not read", str(self._file), "remove it: CVAT writes none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != "annotations":
            raise FormatError(f"the root is <{name[:30]}>, not <annotations>", str(self._file), "is it CVAT's XML?")
        self._path.append(name)
        self._text.clear()
        if name == "image" and len(self._path) == 2:
            raise FormatError("CVAT for images has no tracks", str(self._file), "export it as CVAT for video 1.1")
        if name == "track" and len(self._path) == 2:
            self._declare()
            label = self._intake.add_prompt(attributes.get("label", ""))
            self._track = _Track(self._num_tracks, label, (str(self._file), self._num_tracks))
            self._num_tracks += 1
        elif self._track and len(self._path) == 3:
            self._shape = _Shape(name, attributes, self._parser.CurrentLineNumber)
        elif self._shape and name == "attribute":
            self._attribute = attributes.get("name", "")

    def _end(self, name: str) -> None:
        text = "".join(self._text).strip()
        if self._path[1:2] == ["meta"]:
            self._take_meta(name, text)
        elif self._shape and name == "attribute":
            self._shape.values[self._attribute] = text
        elif self._shape and len(self._path) == 3:
            self._take_shape(self._shape)
            self._shape = None
        elif name == "track" and len(self._path) == 2:
            self._track = None
        self._path.pop()
        self._text.clear()

    def _take_meta(self, name: str, text: str) -> None:
        parent = self._path[-2]
        if parent == "label" and name == "name":
            self._labels.append(text)
        elif parent in ("task", "job", "original_size"):
            self._meta.setdefault(name, text)

    def _declare(self) -> None:
        """Hand the video over, once the head of the file is known."""
        if self._declared:
            return
        self._declared = True
        where = str(self._file)
        hint = self._intake.size_hint or (None, None)
        width, height = self._meta.get("width", hint[0]), self._meta.get("height", hint[1])
        if width is None or height is None:
            raise FormatError("the file has no original_size", where, "give the frame size with --size")
        for label in self._labels:
            self._intake.add_prompt(label)
        self._intake.add_video(
            where,
            self._meta.get("name") or self._file.stem,
            width=width,
            height=height,
            num_frames=self._meta.get("size"),
            fps=rate_in(self._meta.get("fps"), where),
            uri=self._meta.get("source", ""),
        )

    def _take_shape(self, shape: _Shape) -> None:
        track = self._track
        if track is None or shape.kind not in SHAPES:
            self._intake.count(f"shapes of another kind than {', '.join(SHAPES)} were left out")
            return
        where = self._where()
        frame = whole(shape.attributes.get("frame"), "a shape's frame", where)
        outside = shape.attributes.get("outside") == "1"
        last, was_outside = self._last.get(track.key, (frame - 1, True))
        self._last[track.key] = (frame, outside)
        if frame > last + 1 and not was_outside:
            self._intake.count("stretches between key frames were not interpolated")
        if not outside:
            self._add(shape, track, frame, where)

    def _add(self, shape: _Shape, track: _Track, frame: int, where: str) -> None:
        size = self._intake.size(str(self._file))
        xyxy = None
        if shape.kind == "box":
            xyxy = [real(shape.attributes.get(name), name, where) for name in ("xtl", "ytl", "xbr", "ybr")]
            rle: RLE | None = box_rle(xyxy, size, where)
        elif shape.kind == "mask":
            rle = _mask_rle(shape.attributes, size, where)
        else:
            rle = polygons_rle([_points(shape.attributes.get("points", ""), where)], size, where)
        if rle is None:
            self._intake.count("shapes without a pixel were left out")
            return
        key = shape.values.get("masklet_id", "")
        score = real(shape.values.get("score") or 1.0, "a score", where)
        self._intake.add(
            str(self._file), frame, int(key) if key.isdecimal() else track.key, track.label, score, rle, xyxy=xyxy
        )


def _points(text: str, where: str) -> list[float]:
    """``"x,y;x,y"`` as a flat list."""
    return [real(number, "a point", where) for point in text.split(";") for number in point.split(",")]


def _mask_rle(attributes: dict[str, str], size: tuple[int, int], where: str) -> RLE | None:
    """A CVAT mask: row-major runs inside its box, zeros first; ``None`` without a pixel."""
    names = ("left", "top", "width", "height")
    left, top, width, height = (whole(attributes.get(name), f"a mask's {name}", where) for name in names)
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > size[1] or top + height > size[0]:
        raise FormatError(f"a mask is outside the frame of {size[1]} x {size[0]} pixels", where)
    runs = [whole(run.strip(), "a run", where) for run in attributes.get("rle", "").split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise FormatError(f"a mask's runs do not fill its box of {width} x {height}", where)
    inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    frame = np.zeros(size, np.uint8)
    frame[top : top + height, left : left + width] = inside
    flat = frame.reshape(-1, order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *borders, len(flat)])
    return from_runs([0, *lengths] if flat[0] else lengths, size) if inside.any() else None
