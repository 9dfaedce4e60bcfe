"""Clips that the tiny model is at home with: large, plainly coloured shapes on a quiet background."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np


def write_clip(path: Path, *, num_frames: int = 24, size: tuple[int, int] = (180, 320), fps: int = 10) -> Path:
    """A red circle and a blue square that move slowly, H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "14", "preset": "veryfast"}
        for index in range(num_frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(_draw(index, size), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _draw(index: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(index)
    image = np.full((*size, 3), 118, np.uint8) + rng.integers(0, 9, (*size, 3), np.uint8)
    cv2.ellipse(image, (70 + 2 * index, 80), (44, 26), 0, 0, 360, (215, 25, 25), -1, cv2.LINE_AA)
    x, y = 230 - index, 110
    cv2.rectangle(image, (x - 36, y - 22), (x + 36, y + 22), (25, 45, 205), -1, cv2.LINE_AA)
    return image
