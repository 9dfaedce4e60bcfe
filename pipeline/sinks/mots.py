"""MOTS text: ``frame id class height width rle``, separated by spaces, frames from 1.

``mots/VIDEO.txt`` with ``VIDEO.ini`` (the challenge's ``seqinfo.ini``) beside it; ``mots/classes.json`` names the
classes. Cars and pedestrians have the challenge's own numbers, and 10, which it ignores, is left free. Masks of a frame
must not overlap: the higher score keeps the pixels.

Reading takes MOTSChallenge (frames from 1) and KITTI-MOTS (from 0, known by a row of frame 0). Class 10, the ignored
region, becomes the phrase "ignored region" with score 0.

Schema: TrackEval ``docs/MOTS-format.txt`` and ``mots_challenge.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import masks as mask_ops
from pipeline.errors import FormatError
from pipeline.results import FrameResult
from pipeline.sinks.flatten import label_image, overlap_notes
from pipeline.sinks.intake import Intake
from pipeline.sinks.jsonio import dumps, read_document
from pipeline.sinks.mot import read_seqinfo, sequence_name, text_files, write_seqinfo
from pipeline.sinks.reading import CheckedRun
from pipeline.sinks.segmentation import check_size, whole
from pipeline.types import RLE

KNOWN_CLASSES = {"car": 1, "pedestrian": 2, "person": 2}
"""The challenge's own."""

IGNORED_CLASS = 10
IGNORED_PHRASE = "ignored region"


class Mots:
    """Writes and reads MOTS text."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """One file per video."""
        classes = _Classes(run.prompts)
        contested = hidden = 0
        for entry in run.videos:
            write_seqinfo(folder / f"{entry.video_id}.ini", entry)
            with open(folder / f"{entry.video_id}.txt", "w", encoding="ascii", newline="\n") as file:
                for result in run.frames(entry):
                    lines, clashes = _lines(result, classes)
                    file.writelines(lines)
                    contested, hidden = contested + clashes, hidden + len(result) - len(lines)
        (folder / "classes.json").write_text(dumps(classes.names()) + "\n", encoding="utf-8")
        return ["scores are left out: the format has none", *overlap_notes(contested, hidden)]

    def read(self, path: Path, intake: Intake) -> None:
        """Every file under ``path``."""
        for file in text_files(path):
            _read_file(file, intake)


class _Classes:
    """Class numbers of phrases."""

    def __init__(self, prompts: list[str]) -> None:
        self._numbers: dict[str, int] = {}
        for prompt in prompts:
            self.of(prompt)

    def of(self, prompt: str) -> int:
        if prompt not in self._numbers:
            taken = {*self._numbers.values(), *KNOWN_CLASSES.values(), IGNORED_CLASS}
            known = KNOWN_CLASSES.get(prompt)
            free = next(n for n in range(3, len(taken) + 5) if n not in taken)
            self._numbers[prompt] = known if known and known not in self._numbers.values() else free
        return self._numbers[prompt]

    def names(self) -> dict[str, str]:
        return {str(number): prompt for prompt, number in self._numbers.items()}


def _lines(result: FrameResult, classes: _Classes) -> tuple[list[str], int]:
    """The lines of the masks that keep a pixel, and the number of contested pixels."""
    labels, contested = label_image(result)
    ids = result.masklet_id.tolist()
    rles = result.rles
    if contested:
        rles = mask_ops.encode(labels[None] == result.masklet_id[:, None, None])
    rows = zip(ids, result.prompt, rles, mask_ops.areas(rles).tolist(), strict=True)
    return [
        f"{result.index + 1} {i} {classes.of(prompt)} {rle.size[0]} {rle.size[1]} {rle.counts.decode('ascii')}\n"
        for i, prompt, rle, area in rows
        if area
    ], contested


@dataclass(frozen=True, slots=True)
class _Row:
    frame: int
    track: int
    category: int
    rle: RLE
    where: str


def _read_file(file: Path, intake: Intake) -> None:
    name = sequence_name(file)
    info = read_seqinfo(file, intake)
    first, size = 1, info.size if info else None
    for row in _rows(file):
        size = size or row.rle.size
        first = min(first, row.frame)
    size = size or (intake.size_hint[::-1] if intake.size_hint else None)
    if size is None:
        raise FormatError("the file is empty and has no seqinfo.ini", str(file), "give the frame size with --size")
    if first == 0:
        intake.note("frames count from 0, as in KITTI-MOTS")
    length = info.num_frames if info else None
    intake.add_video(name, name, width=size[1], height=size[0], num_frames=length, fps=info.fps if info else None)
    names = _class_names(file, intake)
    for row in _rows(file):
        _take(row, name, first, size, names, intake)


def _take(row: _Row, name: str, first: int, size: tuple[int, int], names: dict[int, str], intake: Intake) -> None:
    fault = mask_ops.fault_of(row.rle, size)
    if fault:
        raise FormatError(f"a mask does not fit: {fault}", row.where)
    if not mask_ops.areas([row.rle])[0]:
        intake.count("rows with an empty mask were left out")
        return
    ignored = row.category == IGNORED_CLASS and IGNORED_CLASS not in names
    prompt = IGNORED_PHRASE if ignored else names.get(row.category, f"class {row.category}")
    intake.add(name, row.frame - first, row.track, prompt, 0.0 if ignored else 1.0, row.rle)


def _class_names(file: Path, intake: Intake) -> dict[int, str]:
    """From ``classes.json`` beside the file, else the challenge's."""
    path = file.parent / "classes.json"
    if not path.is_file():
        return {1: "car", 2: "pedestrian"}
    raw: Any = read_document(path)
    if not isinstance(raw, dict):
        raise FormatError("classes.json must be an object of names by number", str(path))
    return {whole(number, "a class", str(path)): intake.add_prompt(name) for number, name in raw.items()}


def _rows(file: Path) -> Iterator[_Row]:
    try:
        with open(file, encoding="ascii") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(line.split(), f"{file}, line {number}")
    except (UnicodeDecodeError, OSError) as error:
        raise FormatError("not a MOTS text file", str(file), str(error).splitlines()[0]) from error


def _row(fields: list[str], where: str) -> _Row:
    if len(fields) != 6:
        raise FormatError(f"a row has {len(fields)} columns instead of 6", where)
    frame, track, category, height, width = (whole(f, "a column", where) for f in fields[:5])
    if frame < 0:
        raise FormatError(f"frame {frame} is negative", where)
    size = check_size(width, height, where)
    return _Row(frame, track, category, RLE(size, fields[5].encode("ascii")), where)
