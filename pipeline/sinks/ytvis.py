"""YouTube-VIS: one entry per masklet with a mask or ``null`` for every frame of its video.

``ytvis/results.json`` is what a challenge takes ``[{video_id, category_id, score, segmentations}]``;
``ytvis/annotations.json`` is the ground-truth form with ``videos`` and ``categories``, which results refer to by id.
Both carry the scores per frame in ``per_frame_scores``, a key other readers ignore.

Schema: TrackEval ``docs/YouTube-VIS-format.txt``. Ground truth has uncompressed RLE, results compressed; both kinds are
read in either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import masks as mask_ops
from pipeline.errors import FormatError
from pipeline.sinks.coco import box_in, category_name, frame_file, object_of, rate_in
from pipeline.sinks.intake import Intake
from pipeline.sinks.jsonio import dumps, read_elements, write_object
from pipeline.sinks.reading import Categories, CheckedRun, short, xywh
from pipeline.sinks.segmentation import real, rle_of, whole
from pipeline.store import VideoEntry
from pipeline.types import Masklet


class YouTubeVIS:
    """Writes ``results.json`` and ``annotations.json``; reads either."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Both files in one pass over the masklets, one of them in memory at a time."""
        categories, ids = run.categories(), count(1)
        with open(folder / "results.json", "w", encoding="utf-8", newline="\n") as results:

            def annotations() -> Iterator[dict[str, Any]]:
                separator = "[\n"
                for number, entry in enumerate(run.videos, start=1):
                    for masklet in run.masklets(entry):
                        row = track_row(masklet, number, entry, categories)
                        results.write(separator + dumps({k: v for k, v in row.items() if k in RESULT_KEYS}))
                        separator = ",\n"
                        yield {
                            "id": next(ids),
                            **row,
                            "segmentations": [_uncompressed(m) for m in row["segmentations"]],
                        }
                results.write("]\n" if separator == ",\n" else "[]\n")

            write_object(
                folder / "annotations.json",
                {
                    "info": {"description": "masklets", "version": "1.0"},
                    "licenses": [],
                    "videos": (video_row(i, entry) for i, entry in enumerate(run.videos, start=1)),
                    "annotations": annotations(),
                    "categories": categories.coco(),
                },
            )
        return []

    def read(self, path: Path, intake: Intake) -> None:
        """Ground truth or results; results need their ``annotations.json`` (ground truth) beside them."""
        read_tracks(track_files(path, "results.json", "annotations.json"), intake)


def _uncompressed(segmentation: dict[str, Any] | None) -> dict[str, Any] | None:
    """Run lengths as the official ground truth has them, which TrackEval insists on."""
    if segmentation is None:
        return None
    runs = mask_ops.run_lengths(segmentation["counts"].encode("ascii"))
    return {**segmentation, "counts": runs.tolist() if runs is not None else []}


RESULT_KEYS = ("video_id", "category_id", "score", "segmentations", "per_frame_scores")
"""What a result of YouTube-VIS has."""


def video_row(number: int, entry: VideoEntry, name_key: str = "name") -> dict[str, Any]:
    """The video of ground truth, with a name for each of its frames."""
    return {
        "id": number,
        name_key: entry.video_id,
        "width": entry.width,
        "height": entry.height,
        "length": entry.num_frames,
        "fps": entry.fps,
        "file_names": [frame_file(entry, frame) for frame in range(entry.num_frames)],
    }


def track_row(masklet: Masklet, number: int, entry: VideoEntry, categories: Categories) -> dict[str, Any]:
    """A masklet as parallel lists over all frames, ``null`` where it is not visible; its score is their mean."""
    areas = mask_ops.areas(masklet.masks).tolist()
    columns: dict[str, list[Any]] = {
        name: [None] * entry.num_frames for name in ("segmentations", "bboxes", "areas", "per_frame_scores")
    }
    for i, frame in enumerate(masklet.index.tolist()):
        rle = masklet.masks[i]
        columns["segmentations"][frame] = {"size": list(rle.size), "counts": rle.counts.decode("ascii")}
        columns["bboxes"][frame] = xywh(masklet.xyxy[i])
        columns["areas"][frame] = areas[i]
        columns["per_frame_scores"][frame] = short(masklet.score[i])
    return {
        "video_id": number,
        "category_id": categories.id_of(masklet.prompt),
        "score": short(np.mean(masklet.score, dtype=np.float64)),
        "iscrowd": 0,
        "width": entry.width,
        "height": entry.height,
        "masklet_id": masklet.masklet_id,
        **columns,
    }


@dataclass(frozen=True, slots=True)
class TrackFiles:
    """The file with the tracks and the one that describes its videos; the same for ground truth."""

    tracks: Path
    videos: Path


def track_files(path: Path, results: str, truth: str) -> TrackFiles:
    """What to read for ``path``: ground truth, or results with the ground truth beside them; in a folder its results.

    Raises:
        FormatError: results without ground truth.
    """
    tracks = path
    if path.is_dir():
        tracks = next((p for name in (results, truth) for p in sorted(path.rglob(name))), path / results)
    if not _is_array(tracks):
        return TrackFiles(tracks, tracks)
    videos = tracks.with_name(truth)
    if not videos.exists():
        raise FormatError(
            "results name their videos by number only", str(tracks), f"put the ground truth beside them as {truth}"
        )
    return TrackFiles(tracks, videos)


def _is_array(path: Path) -> bool:
    """Whether the document is an array: results are, ground truth is an object."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read(4096).lstrip().startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError("cannot read the file", str(path), str(error).splitlines()[0]) from error


@dataclass(slots=True)
class TrackIndex:
    """The videos and categories that tracks refer to, and the phrases searched for in each video."""

    where: str
    videos: dict[int, dict[str, Any]] = field(default_factory=dict)
    categories: dict[int, Any] = field(default_factory=dict)
    pairs: dict[int, list[str]] | None = None
    """Phrases by video (SA-Co's ``video_np_pairs``), or ``None`` if the file has none."""

    def take(self, member: str, element: Any) -> None:
        """Remember one element of the ground truth."""
        if member not in ("videos", "categories", "video_np_pairs"):
            return
        record = object_of(element, f"an element of {member}", self.where)
        if member == "video_np_pairs":
            self._pair(record)
            return
        table: dict[int, Any] = self.videos if member == "videos" else self.categories
        number = whole(record.get("id"), f"the id in {member}", self.where)
        if number in table:
            raise FormatError(f"id {number} is there twice in {member}", self.where)
        table[number] = record if member == "videos" else record.get("name")

    def _pair(self, record: dict[str, Any]) -> None:
        self.pairs = self.pairs if self.pairs is not None else {}
        video = whole(record.get("video_id"), "a pair's video_id", self.where)
        phrase = record.get("noun_phrase")
        if not isinstance(phrase, str):
            raise FormatError("a video_np_pair has no noun_phrase", self.where)
        self.pairs.setdefault(video, []).append(phrase)

    def declare(self, intake: Intake) -> None:
        """Hand videos and phrases to the run; with pairs, only the phrases they name: SA-Co's table has 51,248."""
        if not self.videos:
            raise FormatError("the file has no videos", self.where, "is it in another format?")
        phrases = self.categories.values() if self.pairs is None else (p for ps in self.pairs.values() for p in ps)
        for phrase in phrases:
            intake.add_prompt(phrase)
        for number, record in self.videos.items():
            names = record.get("file_names")
            if not isinstance(names, list) and "length" not in record:
                raise FormatError(f"video {number} has neither file_names nor length", self.where)
            intake.add_video(
                number,
                _name_of(record, number),
                width=record.get("width"),
                height=record.get("height"),
                num_frames=len(names) if isinstance(names, list) else record["length"],
                fps=rate_in(record.get("fps"), self.where),
                prompts=None if self.pairs is None else self.pairs.get(number, []),
            )


def _name_of(record: dict[str, Any], number: int) -> str:
    """The video's name; official YouTube-VIS files have it only as the folder of its frames."""
    name = record.get("video_name", record.get("name"))
    files = record.get("file_names") or [""]
    if name is None and isinstance(files[0], str) and "/" in files[0]:
        name = files[0].rsplit("/", 1)[0]
    return str(name) if name is not None else f"video{number}"


def read_tracks(files: TrackFiles, intake: Intake) -> None:
    """Read ground truth or results, track by track."""
    index = TrackIndex(str(files.videos))
    for member, element in read_elements(files.videos):
        index.take(member, element)
    index.declare(intake)
    member_wanted = "annotations" if files.tracks == files.videos else ""
    tracks = (element for member, element in read_elements(files.tracks) if member == member_wanted)
    for number, element in enumerate(tracks):
        _read_track(object_of(element, "a track", str(files.tracks)), number, index, intake, str(files.tracks))


def _read_track(record: dict[str, Any], number: int, index: TrackIndex, intake: Intake, path: str) -> None:
    where = f"{path}, track {number}"
    video = whole(record.get("video_id"), "a track's video_id", where)
    size = intake.size(video)
    phrase = record.get("noun_phrase") or category_name(index.categories, record.get("category_id"), where)
    columns = _columns(record, where)
    score = real(record.get("score", 1.0), "a score", where)
    seen = 0
    for frame, segmentation in enumerate(columns["segmentations"]):
        rle = rle_of(segmentation, size, f"{where}, frame {frame}")
        if rle is None:
            continue
        seen += 1
        frame_score = columns["per_frame_scores"][frame]
        intake.add(
            video,
            frame,
            number,
            phrase,
            score if frame_score is None else real(frame_score, "a score", where),
            rle,
            xyxy=box_in(columns["bboxes"][frame], where),
        )
    if not seen:
        intake.count("tracks without a single mask were left out")


def _columns(record: dict[str, Any], where: str) -> dict[str, list[Any]]:
    """The parallel lists of a track; those that are optional are filled with ``None``."""
    segmentations = record.get("segmentations")
    if not isinstance(segmentations, list):
        raise FormatError("a track has no list of segmentations", where)
    columns = {"segmentations": segmentations}
    for name in ("bboxes", "per_frame_scores"):
        column = record.get(name)
        if column is None:
            column = [None] * len(segmentations)
        if not isinstance(column, list) or len(column) != len(segmentations):
            raise FormatError(f"a track's {name} are not one for each of its {len(segmentations)} segmentations", where)
        columns[name] = column
    return columns
