"""MOTChallenge text: ``frame,id,left,top,width,height,confidence,-1,-1,-1``, frames and ids from 1.

The text has no class, so ``mot/PHRASE/VIDEO.txt`` has one folder per phrase: each is what TrackEval calls a tracker
folder. ``VIDEO.ini`` beside it is the challenge's ``seqinfo.ini`` with the phrase added. Pixel coordinates start at 0,
as most trackers write them (the challenge's own ground truth starts at 1; TrackEval does not correct either).

Reading takes results and ground truth, one file, a sequence folder (``SEQ/gt/gt.txt`` with ``SEQ/seqinfo.ini``) or a
folder of those. Ground truth of MOT16 and later names classes; its ignored rows (flag 0) get score 0.

Schema: TrackEval ``docs/MOTChallenge-format.txt``.
"""

from __future__ import annotations

import configparser
import csv
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

from pipeline.errors import FormatError
from pipeline.results import FrameResult
from pipeline.sinks.coco import rate_in
from pipeline.sinks.intake import Intake
from pipeline.sinks.reading import CheckedRun, rate_of
from pipeline.sinks.segmentation import box_rle, real, whole
from pipeline.store import VideoEntry

CLASSES = {
    1: "pedestrian",
    2: "person on vehicle",
    3: "car",
    4: "bicycle",
    5: "motorbike",
    6: "non-motorised vehicle",
    7: "static person",
    8: "distractor",
    9: "occluder",
    10: "occluder on the ground",
    11: "occluder full",
    12: "reflection",
    13: "crowd",
}
"""Of MOT16 and later (the MOT16 paper, table 2; TrackEval's ``mot_challenge_2d_box.py``)."""


class Mot:
    """Writes and reads MOTChallenge text."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """A file per phrase and video; also for phrases that found nothing, since evaluators want one per sequence."""
        names = Folders(run.prompts)
        for entry in run.videos:
            _export_video(run, entry, folder, names)
        return ["masks became boxes"]

    def read(self, path: Path, intake: Intake) -> None:
        """Every sequence under ``path``; files of the same sequence under several phrases become one video."""
        sequences: dict[str, list[Path]] = {}
        for file in text_files(path):
            sequences.setdefault(sequence_name(file), []).append(file)
        for name, files in sequences.items():
            _read_sequence(name, files, intake)


class Folders:
    """A folder name for each phrase: readable, safe, and no two the same."""

    def __init__(self, prompts: list[str]) -> None:
        self._names: dict[str, str] = {}
        for prompt in prompts:
            self.of(prompt)

    def of(self, prompt: str) -> str:
        """The folder of this phrase."""
        if prompt not in self._names:
            plain = re.sub(r"[^\w-]+", "_", prompt).strip("_")[:60].encode()[:120].decode(errors="ignore") or "phrase"
            taken = {name.casefold() for name in self._names.values()}
            tries = (plain if n == 1 else f"{plain}-{n}" for n in range(1, len(taken) + 2))
            self._names[prompt] = next(name for name in tries if name.casefold() not in taken)
        return self._names[prompt]

    def items(self) -> list[tuple[str, str]]:
        """``(phrase, folder)`` so far."""
        return list(self._names.items())


def _export_video(run: CheckedRun, entry: VideoEntry, folder: Path, names: Folders) -> None:
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}

        def file_of(prompt: str) -> IO[str]:
            if prompt not in files:
                parent = folder / names.of(prompt)
                parent.mkdir(exist_ok=True)
                write_seqinfo(parent / f"{entry.video_id}.ini", entry, prompt)
                files[prompt] = stack.enter_context(open(parent / f"{entry.video_id}.txt", "w", encoding="ascii"))
            return files[prompt]

        for prompt in run.prompts:
            file_of(prompt)
        for result in run.frames(entry):
            for prompt, line in _lines(result):
                file_of(prompt).write(line)


def _lines(result: FrameResult) -> Iterator[tuple[str, str]]:
    for i, (masklet_id, box) in enumerate(zip(result.masklet_id.tolist(), result.xyxy.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        numbers = f"{result.index + 1},{masklet_id},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
        yield result.prompt[i], f"{numbers},{result.score[i]:.9f},-1,-1,-1\n"


def write_seqinfo(path: Path, entry: VideoEntry, prompt: str | None = None) -> None:
    """The challenge's ``seqinfo.ini``, the exact rate and the phrase in a section of ours."""
    info = configparser.RawConfigParser()
    info.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep the letters' case
    info["Sequence"] = {
        "name": entry.video_id,
        "imDir": "img1",
        "frameRate": f"{float(rate_of(entry)):g}",
        "seqLength": str(entry.num_frames),
        "imWidth": str(entry.width),
        "imHeight": str(entry.height),
        "imExt": ".jpg",
    }
    info["masklet"] = {"fps": entry.fps or "", **({"phrase": prompt} if prompt is not None else {})}
    with open(path, "w", encoding="utf-8") as file:
        info.write(file, space_around_delimiters=False)


def text_files(path: Path) -> list[Path]:
    """The annotation files at or under ``path``; of a sequence folder, its ground truth rather than its detections.

    Raises:
        FormatError: there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*.txt") if not p.name.startswith("."))
    truths = [p for p in found if p.parts[-2:] == ("gt", "gt.txt")]
    found = truths or [p for p in found if p.name not in ("labels.txt", "seqmap.txt")]
    if not found:
        raise FormatError("the folder holds no .txt file", str(path))
    return found


def sequence_name(file: Path) -> str:
    """The sequence a file belongs to: ``SEQ/gt/gt.txt``, ``SEQ/det/det.txt``, ``SEQ/gt.txt`` or ``SEQ.txt``."""
    path = file.resolve()
    while path.stem in ("gt", "det") and path.parent.name:
        path = path.parent
    return path.name if path.is_dir() else path.stem


@dataclass(frozen=True, slots=True)
class SeqInfo:
    """What ``seqinfo.ini`` says."""

    size: tuple[int, int]
    """``(height, width)``"""
    num_frames: int | None
    fps: Fraction | None
    phrase: str | None = None


def read_seqinfo(file: Path, intake: Intake) -> SeqInfo | None:
    """The ``seqinfo.ini`` that belongs to an annotation file, or ``None`` if there is none."""
    places = (file.with_suffix(".ini"), file.parent / "seqinfo.ini", file.parent.parent / "seqinfo.ini")
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        return None
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
        sequence = parser["Sequence"]
    except (configparser.Error, KeyError, ValueError, OSError) as error:
        raise FormatError("not a valid seqinfo.ini", str(path), str(error).splitlines()[0]) from error
    ours = parser["masklet"] if parser.has_section("masklet") else {}
    height, width = (whole(sequence.get(key), key, str(path)) for key in ("imHeight", "imWidth"))
    length = sequence.get("seqLength")
    rate = (ours.get("fps") or None) if "fps" in ours else sequence.get("frameRate")
    return SeqInfo(
        (height, width),
        None if length is None else whole(length, "seqLength", str(path)),
        rate_in(rate, str(path)),
        ours.get("phrase"),
    )


def _read_sequence(name: str, files: list[Path], intake: Intake) -> None:
    """All files of one sequence, each with a phrase of its own."""
    infos = [read_seqinfo(file, intake) for file in files]
    info = next((i for i in infos if i), None) or _guessed(files, intake)
    intake.add_video(
        name, name, width=info.size[1], height=info.size[0], num_frames=info.num_frames, fps=info.fps, uri=name
    )
    shared_ids = len(files) == 1 or all(own and own.phrase for own in infos)
    for number, (file, own) in enumerate(zip(files, infos, strict=True)):
        phrase = intake.add_prompt(own.phrase) if own and own.phrase else intake.text
        for row in _rows(file):
            rle = box_rle(row.xyxy, info.size, row.where)
            if min(row.xyxy) < 0 or row.xyxy[2] > info.size[1] or row.xyxy[3] > info.size[0]:
                intake.count("boxes reach out of the frame; their masks are cut there")
            prompt = phrase if row.category is None else CLASSES.get(row.category, f"class {row.category}")
            track = row.track if shared_ids else (number, row.track)
            intake.add(name, row.frame - 1, track, prompt, row.score, rle, xyxy=row.xyxy)
    intake.note("masks are the boxes, filled")


def _guessed(files: list[Path], intake: Intake) -> SeqInfo:
    """The size the user gave, or the extent of the boxes."""
    if intake.size_hint:
        return SeqInfo((intake.size_hint[1], intake.size_hint[0]), None, None)
    width = height = 1.0
    for file in files:
        for row in _rows(file):
            width, height = max(width, row.xyxy[2]), max(height, row.xyxy[3])
    intake.note("no seqinfo.ini: the frame size is the extent of the boxes")
    return SeqInfo((int(-(-height // 1)), int(-(-width // 1))), None, None)


@dataclass(frozen=True, slots=True)
class _Row:
    frame: int
    """From 1."""
    track: int
    xyxy: list[float]
    score: float
    category: int | None
    """Of ground truth of MOT16 and later."""
    where: str


def _rows(file: Path) -> Iterator[_Row]:
    """The rows of a file; blank lines do not count."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, fields in enumerate(csv.reader(lines, strict=True), start=1):
                if fields and any(f.strip() for f in fields):
                    yield _row(fields, f"{file}, line {number}")
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise FormatError("not a MOTChallenge text file", str(file), str(error).splitlines()[0]) from error


def _row(fields: list[str], where: str) -> _Row:
    if not 6 <= len(fields) <= 10:
        raise FormatError(f"a row has {len(fields)} columns instead of 6 to 10", where)
    frame, track, left, top, width, height = (real(f, "a column", where) for f in fields[:6])
    frame_number = whole(frame, "the frame", where)
    if frame_number < 1:
        raise FormatError(f"frame {frame_number}: frames count from 1", where)
    track_number = whole(track, "the id", where)
    if track_number < 0:
        raise FormatError(
            "a row has no id", where, "detections without ids are no tracks: see `masklet track --detections`"
        )
    score = real(fields[6], "the confidence", where) if len(fields) > 6 else 1.0
    category = whole(real(fields[7], "the class", where), "the class", where) if len(fields) in (8, 9) else None
    box = [left, top, left + width, top + height]
    return _Row(frame_number, track_number, box, score, category, where)
