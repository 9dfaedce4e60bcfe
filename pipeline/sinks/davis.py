"""DAVIS: ``davis/VIDEO/00000.png``, one indexed PNG per source frame, 0 for background, an object's number elsewhere.

Masks of a frame must not overlap: the higher score keeps the pixels. A label image holds 254 objects (255 is void);
masklets beyond that go to ``VIDEO.2``, ``VIDEO.3`` ..., each a valid DAVIS sequence. ``davis/objects.json`` says which
masklet and phrase each number is, and what the pictures cannot hold: rate and masklet ids.

Reading takes a sequence folder or a folder of those: indexed PNGs, and grey ones with 0 and 255 (DAVIS 2016).

Schema: TrackEval ``docs/DAVIS-format.txt``, davis2017-evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import masks as mask_ops
from pipeline.errors import FormatError
from pipeline.results import FrameResult
from pipeline.sinks.coco import object_of, rate_in
from pipeline.sinks.flatten import LabelImage, label_image, overlap_notes
from pipeline.sinks.intake import Intake
from pipeline.sinks.jsonio import read_document, write_object
from pipeline.sinks.reading import CheckedRun, check_name
from pipeline.sinks.segmentation import check_size, whole
from pipeline.store import VideoEntry

OBJECTS_PER_PLANE = 254
"""A plane is 8 bits: 0 is background and 255 void."""
VOID = 255


def davis_palette() -> list[int]:
    """The 768 values of the DAVIS (and PASCAL VOC) palette: a number's bit 3k + c is bit 7 - k of its colour c."""
    numbers = np.arange(256)
    channels = [sum(((numbers >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return [int(v) for v in np.stack(channels, axis=1).reshape(-1)]


class Davis:
    """Writes and reads folders of indexed PNGs."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """A picture for every source frame, with or without objects."""
        contested = hidden = 0
        described: dict[str, Any] = {}
        for entry in run.videos:
            planes = _Planes(folder, entry, {v.video_id for v in run.videos})
            for result in run.frames(entry):
                labels, clashes = label_image(result)
                covered = set(result.masklet_id.tolist()) - set(np.unique(labels).tolist())
                contested, hidden = contested + clashes, hidden + len(covered)
                planes.write(result, labels)
            described |= planes.finish()
        write_object(folder / "objects.json", {"sequences": described})
        notes = ["scores are left out: the format has none", *overlap_notes(contested, hidden)]
        if len(described) > len(run.videos):
            notes.append(f"a label image holds {OBJECTS_PER_PLANE} objects: the rest is in {len(described)} sequences")
        return notes

    def read(self, path: Path, intake: Intake) -> None:
        """A sequence folder, or a folder of them."""
        folders = _sequence_folders(path)
        if not folders:
            raise FormatError("the folder holds no PNG files", str(path))
        description = next((p for p in (path / "objects.json", path.parent / "objects.json") if p.is_file()), None)
        described = _description(description) if description else {}
        for name, group in _by_video(folders, described).items():
            _read_video(name, group, intake)


class _Planes:
    """The sequences of one video: the first 254 masklets in the first, and so on."""

    def __init__(self, folder: Path, entry: VideoEntry, taken: set[str]) -> None:
        self._folder, self._entry, self._taken = folder, entry, taken
        self._names: list[str] = []
        self._next: list[int] = []
        self._phrases: dict[int, str] = {}
        self._palette = davis_palette()
        self._plane(0)

    def _plane(self, number: int) -> Path:
        while len(self._names) <= number:
            name = self._entry.video_id if not self._names else f"{self._entry.video_id}.{len(self._names) + 1}"
            if self._names and name in self._taken:
                raise FormatError(f"two sequences would be called {name!r}", "davis", "rename the video")
            (self._folder / check_name(name, "davis")).mkdir()
            self._names.append(name)
            self._next.append(0)
        return self._folder / self._names[number]

    def write(self, result: FrameResult, labels: LabelImage) -> None:
        """The frame into every plane that has an object on it."""
        self._phrases |= dict(zip(result.masklet_id.tolist(), result.prompt, strict=True))
        planes = np.where(labels > 0, (labels - 1) // OBJECTS_PER_PLANE, -1)
        for number in np.unique(planes[planes >= 0]).tolist():
            picture = np.where(planes == number, (labels - 1) % OBJECTS_PER_PLANE + 1, 0).astype(np.uint8)
            self._plane(number)
            self._fill(number, result.index)
            self._save(number, result.index, picture)

    def _fill(self, number: int, stop: int) -> None:
        """Empty pictures for the frames before ``stop`` that have none yet."""
        for frame in range(self._next[number], stop):
            self._save(number, frame, np.zeros((self._entry.height, self._entry.width), np.uint8))

    def _save(self, number: int, frame: int, picture: NDArray[np.uint8]) -> None:
        image = Image.fromarray(picture)
        image.putpalette(self._palette)
        image.save(self._plane(number) / f"{frame:05d}.png")
        self._next[number] = frame + 1

    def finish(self) -> dict[str, Any]:
        """Fill every plane to the video's end, and describe them."""
        described = {}
        for number, name in enumerate(self._names):
            self._fill(number, self._entry.num_frames)
            ids = [i for i in sorted(self._phrases) if (i - 1) // OBJECTS_PER_PLANE == number]
            described[name] = {
                "video_id": self._entry.video_id,
                "fps": self._entry.fps,
                "objects": {
                    str((i - 1) % OBJECTS_PER_PLANE + 1): {"masklet_id": i, "prompt": self._phrases[i]} for i in ids
                },
            }
        return described


def _sequence_folders(path: Path) -> list[Path]:
    """The folders with PNGs at or under ``path``.

    Raises:
        FormatError: ``path`` is a file.
    """
    if path.is_file():
        raise FormatError("DAVIS annotations are a folder of PNG files", str(path))
    folders = [path, *sorted(p for p in path.rglob("*") if p.is_dir() and not p.name.startswith("."))]
    return [folder for folder in folders if any(folder.glob("*.png"))]


@dataclass(frozen=True, slots=True)
class _Object:
    track: int
    prompt: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What is known of one folder."""

    folder: Path
    fps: Any = None
    objects: dict[int, _Object] | None = None


def _description(path: Path) -> dict[str, Any]:
    raw = object_of(read_document(path), "objects.json", str(path))
    sequences = object_of(raw.get("sequences", {}), "objects.json's sequences", str(path))
    return {name: object_of(s, f"sequence {name!r}", str(path)) for name, s in sequences.items()}


def _by_video(folders: list[Path], described: dict[str, Any]) -> dict[str, list[_Sequence]]:
    """Folders by the video they are planes of."""
    videos: dict[str, list[_Sequence]] = {}
    for folder in folders:
        about = described.get(folder.name)
        if about is None:
            videos.setdefault(folder.name, []).append(_Sequence(folder))
            continue
        where = f"objects.json, {folder.name}"
        objects = {}
        for number, element in object_of(about.get("objects", {}), "objects", where).items():
            record = object_of(element, "an object", where)
            track = whole(record.get("masklet_id"), "a masklet_id", where)
            objects[whole(number, "an object's number", where)] = _Object(track, str(record.get("prompt", "object")))
        videos.setdefault(str(about.get("video_id", folder.name)), []).append(
            _Sequence(folder, about.get("fps"), objects)
        )
    return videos


def _read_video(name: str, sequences: list[_Sequence], intake: Intake) -> None:
    files = {sequence.folder: _frames_in(sequence.folder) for sequence in sequences}
    first_file = next(iter(files[sequences[0].folder].values()))
    size = _open(first_file)[0].shape
    length = max(max(frames) for frames in files.values()) + 1
    intake.add_video(
        name,
        name,
        width=size[1],
        height=size[0],
        num_frames=length,
        fps=rate_in(sequences[0].fps, f"objects.json, {name}"),
        uri=str(sequences[0].folder),
        num_annotated=len(set().union(*files.values())),
    )
    for sequence in sequences:
        for frame, file in files[sequence.folder].items():
            _read_picture(name, frame, file, sequence, intake)


def _frames_in(folder: Path) -> dict[int, Path]:
    """The PNGs by frame: the number in their name where every name has one, else their rank."""
    files = sorted(folder.glob("*.png"))
    numbers = [re.findall(r"\d+", file.stem) for file in files]
    if not all(numbers):
        return dict(enumerate(files))
    frames = {whole(found[-1], "a frame number", str(folder)): file for found, file in zip(numbers, files, strict=True)}
    if len(frames) != len(files):
        raise FormatError("two pictures have the same frame number", str(folder))
    return dict(sorted(frames.items()))


def _read_picture(name: str, frame: int, file: Path, sequence: _Sequence, intake: Intake) -> None:
    (labels, is_indexed), size = _open(file), intake.size(name)
    if labels.shape != size:
        raise FormatError(
            f"a picture is {labels.shape[1]} x {labels.shape[0]}, the first is {size[1]} x {size[0]}", str(file)
        )
    for number, mask in _objects_in(labels, is_indexed):
        about = (sequence.objects or {}).get(number, _Object(number, intake.text))
        intake.add(name, frame, about.track, about.prompt, 1.0, mask_ops.encode(mask[None])[0])
    if is_indexed and (labels == VOID).any():
        intake.count("pictures have void pixels (255), which are left out")


def _objects_in(labels: NDArray[np.int32], is_indexed: bool) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The objects of a picture. A grey one with only 0 and 255 is a binary mask, as in DAVIS 2016."""
    numbers = [n for n in np.unique(labels).tolist() if n]
    if numbers == [VOID] and not is_indexed:
        yield 1, labels == VOID
        return
    for number in numbers:
        if number != VOID or not is_indexed:
            yield number, labels == number


def _open(file: Path) -> tuple[NDArray[np.int32], bool]:
    """The labels of a picture, ``(H, W)``, and whether it has a palette.

    Raises:
        FormatError: damaged, in colour, or of a size that cannot be.
    """
    try:
        with Image.open(file) as image:
            check_size(image.width, image.height, str(file))
            if image.mode not in ("P", "L", "1", "I;16", "I"):
                raise FormatError(f"a picture is {image.mode}, not indexed", str(file), "colours are not labels")
            return np.asarray(image).astype(np.int32), image.mode == "P"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FormatError("not a PNG that can be read", str(file), str(error).splitlines()[0][:120]) from error
