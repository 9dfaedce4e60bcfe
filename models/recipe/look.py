"""See what the detector finds in a real video: a contact sheet of frames (rows) by phrases (columns).

python -m models.recipe.look --video cups.mp4 --phrases "red thing" "yellow circle" --out sheet.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.recipe.net import Phrases, Tiny, detect, load, to_pixels
from models.recipe.scenes import U8

TINTS = np.array(
    [[255, 80, 80], [80, 255, 80], [80, 80, 255], [255, 255, 80], [255, 80, 255], [80, 255, 255]], np.float32
)
TILE = (320, 180)


def frames_of(video: Path, count: int) -> list[U8]:
    """`count` BGR frames spread over a video."""
    capture = cv2.VideoCapture(str(video))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames = []
    for index in np.linspace(0, total - 2, count).astype(int):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(index))
        ok, frame = capture.read()
        if ok:
            frames.append(frame)
    return frames


def _paint(frame: U8, scores: NDArray[np.float32], masks: NDArray[np.float32], caption: str) -> U8:
    tile = cv2.resize(frame, TILE, interpolation=cv2.INTER_AREA)
    for i, (score, mask) in enumerate(zip(scores, masks, strict=True)):
        inside = cv2.resize(mask, TILE) > 0
        if inside.any():
            tile[inside] = (tile[inside] * 0.4 + TINTS[i % len(TINTS)] * 0.6).astype(np.uint8)
            ys, xs = np.nonzero(inside)
            cv2.putText(
                tile,
                f"{score:.2f}",
                (int(xs.min()), int(ys.min()) - 2),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.4,
                (255, 255, 255),
                1,
            )
    cv2.putText(tile, caption, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 3)
    cv2.putText(tile, caption, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1)
    return np.asarray(tile)


@torch.no_grad()
def sheet(tiny: Tiny, frames: Sequence[U8], phrases: Sequence[str], threshold: float) -> U8:
    """One row a frame, one column a phrase, masks above the threshold tinted."""
    size, rows = tiny.config.tracker_config.image_size, []
    owner, ids = torch.zeros(len(phrases), dtype=torch.long), Phrases()(list(phrases))
    for frame in frames:
        small = cv2.cvtColor(cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        found = detect(tiny.detector, tiny.detector.vision_encoder(to_pixels(small[None])), owner, *ids)
        assert found.masks is not None
        presence = found.presence[-1].sigmoid().reshape(-1)
        tiles = []
        for p, text in enumerate(phrases):
            scores = found.logits[-1][p].sigmoid() * presence[p]
            keep = scores > threshold
            tiles.append(
                _paint(frame, scores[keep].numpy(), found.masks[p, keep].numpy(), f"{text} {float(presence[p]):.2f}")
            )
        rows.append(np.hstack(tiles))
    return np.asarray(np.vstack(rows))


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--phrases", nargs="+", required=True)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.imwrite(
        str(args.out), sheet(load(args.model), frames_of(args.video, args.frames), args.phrases, args.threshold)
    )


if __name__ == "__main__":
    main()
