"""A folder of pictures as one video: natural file order, one frame per file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from pipeline.decode_table import FrameTable
from pipeline.errors import NoVideoError, SourceError
from pipeline.types import UInt8Array, VideoInfo

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``2.jpg`` before ``10.jpg``."""
    return tuple(
        (0, int(part), part) if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"([0-9]+)", name)
    )


def image_files(folder: Path) -> list[Path]:
    """The pictures directly in ``folder``, naturally sorted; hidden files do not count."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=lambda p: natural_key(p.name))


def is_image_folder(path: Path) -> bool:
    """True for a folder with at least one picture in it."""
    return path.is_dir() and bool(image_files(path))


def probe_images(folder: Path, stream_id: str, fps: Fraction) -> FrameTable:
    """The frame table of a folder of pictures; the first readable one sets the size.

    Raises:
        NoVideoError: none of them can be read.
    """
    files = image_files(folder)
    first = next((image for image in map(read_image, files) if image is not None), None)
    if first is None:
        raise NoVideoError("none of its pictures can be read", str(folder), "check the files")
    height, width = first.shape[:2]
    return FrameTable(
        info=VideoInfo(str(folder), width, height, fps, len(files), float(len(files) / fps), 0),
        stream_id=stream_id,
        source=str(folder),
        pts=np.arange(len(files), dtype=np.int64),
        time_base=1 / fps,
        container="images",
        codec=files[0].suffix.lower().lstrip("."),
        decord_ok=False,
        decord_reason="it is a folder of pictures",
        num_declared=len(files),
        coded_size=(height, width),
        files=tuple(str(file) for file in files),
    )


def read_image(path: str | Path) -> UInt8Array | None:
    """``(h, w, 3)`` RGB, upright by its EXIF tag, or ``None`` if it cannot be read."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    return None if image is None else np.asarray(image, np.uint8)


def decode_images(table: FrameTable, start: int, stop: int, stride: int) -> Iterator[tuple[int, UInt8Array]]:
    """``(index, image)`` of every ``stride``-th picture; unreadable ones are left out.

    A picture of another size than the first is scaled to it: masks of one video have one size.
    """
    if not Path(table.source).is_dir():
        raise SourceError("the folder vanished", table.info.uri, "run the job again")
    height, width = table.source_size
    for index in range(start, stop, stride):
        image = read_image(table.files[index])
        if image is not None and image.shape[:2] != (height, width):
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        if image is not None:
            yield index, image
