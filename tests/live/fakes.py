"""Stand-ins of detector and tracker that see real pixels, for tests of everything around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline import masks as mask_ops
from pipeline.types import BoxPrompt, Detections, Frame, FrameTracks, Prompts

COLOURS = {"red": (220, 40, 40), "blue": (40, 80, 220), "green": (40, 170, 70)}


def prompts_of(phrases: Sequence[str]) -> Prompts:
    """Prompts without meaning in their numbers."""
    n = len(phrases)
    return Prompts(tuple(phrases), np.zeros((n, 1, 4), np.float32), np.ones((n, 1), bool))


class ColourDetector:
    """Finds blobs of the colour a phrase names, at a quarter of the picture's resolution."""

    image_size = 96

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        """Streams of the latest calls."""

    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        self.batches = [*self.batches[-99:], [f.stream_id for f in frames]]
        return [self._one(frame, prompts) for frame in frames]

    def encode_boxes(self, frame: Frame, boxes: Sequence[BoxPrompt], prompts: Prompts) -> Prompts:
        """An exemplar is the colour in the middle of its box."""
        n, scale = len(prompts.phrases), frame.image.shape[1] / frame.source_size[1]
        for box in boxes:
            assert box.frame == frame.index
            x, y = (round(scale * (box.xyxy[k] + box.xyxy[k + 2]) / 2) for k in (0, 1))
            token = np.array([*frame.image[y, x], 1], np.float32)
            embeddings = np.concatenate([prompts.embeddings, np.tile(token, (n, 1, 1))], axis=1)
            prompts = Prompts(prompts.phrases, embeddings, np.ones(embeddings.shape[:2], bool), prompts.num_vetoes)
        return prompts

    def _one(self, frame: Frame, prompts: Prompts) -> Detections:
        boxes, scores, ids, logits = [], [], [], []
        for prompt_id, phrase in enumerate(prompts.phrases[: prompts.num_wanted]):
            shown = prompts.embeddings[prompt_id, -1]
            colour = shown[:3] if shown[3] else np.array(COLOURS.get(phrase.split()[0], (1, 2, 3)))
            near = (np.abs(frame.image.astype(int) - colour).max(-1) < 60).astype(np.uint8)
            count, labels, stats, _ = cv2.connectedComponentsWithStats(near)
            for k in range(1, count):
                if stats[k, cv2.CC_STAT_AREA] >= 8:
                    boxes.append(_box(labels == k, frame))
                    scores.append(0.9)
                    ids.append(prompt_id)
                    logits.append(np.where(labels == k, 5.0, -5.0))
        if not boxes:
            return Detections.empty(frame.image.shape[:2])
        return Detections(
            np.stack(boxes).astype(np.float32),
            np.array(scores, np.float32),
            np.array(ids, np.int16),
            np.stack(logits).astype(np.float32),
        )


def _box(mask: np.ndarray, frame: Frame) -> np.ndarray:
    height, width = mask.shape
    scale = np.array([frame.source_size[1] / width, frame.source_size[0] / height] * 2)
    return mask_ops.boxes(mask[None])[0] * scale


class NearestTracker:
    """Follows the nearest detection of the same phrase; takes back what is gone within ``hotstart`` frames."""

    def __init__(self, stream_id: str, session: int = 0, *, hotstart: int = 5, unmatched: int = 3) -> None:
        self.stream_id, self.session = stream_id, session
        self.hotstart, self.unmatched = hotstart, unmatched
        self.tracks: dict[int, dict[str, float]] = {}
        self.next_id = 1
        self.step_count = 0
        self.fail_on: int | None = None
        self.counters: dict[str, int] = {}

    def step(self, frame: Frame, detections: Detections | None) -> FrameTracks:
        if self.fail_on is not None and frame.index >= self.fail_on:
            raise RuntimeError("made to fail")
        found = detections if detections is not None else Detections.empty()
        rows: dict[int, int] = {}
        for row in range(len(found)):
            rows[self._match(found, row, rows)] = row
        withdrawn = []
        for track_id, track in list(self.tracks.items()):
            track["missed"] = 0 if track_id in rows else track["missed"] + 1
            young = self.step_count - track["born"] < self.hotstart
            if young and track["missed"] >= self.unmatched:
                withdrawn.append(track_id)
                del self.tracks[track_id]
        self.step_count += 1
        ids = sorted(rows)
        order = [rows[i] for i in ids]
        masks = [_full(found.mask_logits[r], frame.source_size) for r in order]
        rles = mask_ops.encode(np.stack(masks)) if masks else ()
        return FrameTracks(
            frame.stream_id,
            self.session,
            frame.index,
            frame.pts_s,
            np.array(ids, np.int64),
            found.prompt_id[order].astype(np.int16),
            found.score[order],
            mask_ops.rle_boxes(rles),
            tuple(rles),
            np.array(withdrawn, np.int64),
        )

    def _match(self, found: Detections, row: int, taken: dict[int, int]) -> int:
        x, y = float(found.xyxy[row, ::2].mean()), float(found.xyxy[row, 1::2].mean())
        prompt = int(found.prompt_id[row])
        free = [
            (abs(t["x"] - x) + abs(t["y"] - y), i)
            for i, t in self.tracks.items()
            if t["prompt"] == prompt and i not in taken
        ]
        near = min(free, default=(1e9, 0))
        track_id = near[1] if near[0] < 400 else self.next_id
        if track_id == self.next_id:
            self.next_id += 1
            self.tracks[track_id] = {"born": self.step_count, "missed": 0, "prompt": prompt}
        self.tracks[track_id] |= {"x": x, "y": y}
        return track_id

    def skip(self, num_frames: int) -> None:
        """It looks everywhere."""

    def forget(self, track_ids: np.ndarray) -> None:
        for track_id in track_ids.tolist():
            self.tracks.pop(track_id, None)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {"tracks": self.tracks, "next_id": self.next_id, "step": self.step_count, "session": self.session}
        (folder / "tracker.json").write_text(json.dumps(state))

    def restore(self, folder: Path) -> None:
        state = json.loads((folder / "tracker.json").read_text())
        self.tracks = {int(k): v for k, v in state["tracks"].items()}
        self.next_id, self.step_count, self.session = state["next_id"], state["step"], state["session"]


def _full(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize((logits > 0).astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST) > 0
