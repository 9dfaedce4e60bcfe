"""Ultralytics' segmentation labels: ``yolo/labels/train/VIDEO/00000.txt`` and ``yolo/data.yaml``.

A line is ``class x1 y1 x2 y2 ...``, normalised, one ring; pieces and holes are joined by bridges of no width, as
ultralytics joins them itself. Class numbers start at 0, in the order of ``data.yaml``. Label lines have no room for a
track id: ``yolo/tracks.csv`` says which masklet each line is. Pictures are not written: put the frames at
``yolo/images/train/VIDEO/00000.jpg``.

Schema: ultralytics' documentation of segmentation datasets.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from pipeline.results import FrameResult
from pipeline.sinks.polygons import Ring, Tracer
from pipeline.sinks.reading import Categories, CheckedRun, short


class Yolo:
    """Writes label files, ``data.yaml`` and ``tracks.csv``."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """A text file for each frame that has objects; frames without are background."""
        categories, tracer = run.categories(), Tracer()
        with open(folder / "tracks.csv", "w", encoding="utf-8", newline="") as file:
            tracks = csv.writer(file)
            tracks.writerow(("file", "line", "masklet_id", "score"))
            for entry in run.videos:
                labels = folder / "labels" / "train" / entry.video_id
                labels.mkdir(parents=True)
                for result in run.frames(entry):
                    if len(result):
                        name = f"{result.index:05d}.txt"
                        (labels / name).write_text("".join(_lines(result, categories, tracer)), encoding="ascii")
                        _list(tracks, f"labels/train/{entry.video_id}/{name}", result)
        names = {i - 1: name for i, name in categories.items()}
        data = {"path": ".", "train": "images/train", "val": "images/train", "names": names}
        (folder / "data.yaml").write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return [*tracer.notes(), "pictures are not written: put the frames at yolo/images/train/VIDEO/00000.jpg"]


def _lines(result: FrameResult, categories: Categories, tracer: Tracer) -> list[str]:
    height, width = result.source_size
    return [
        f"{categories.id_of(prompt) - 1} {_points(tracer.ring(rle), height, width)}\n"
        for prompt, rle in zip(result.prompt, result.rles, strict=True)
    ]


def _points(ring: Ring, height: int, width: int) -> str:
    return " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in ring.tolist())


def _list(tracks: Any, name: str, result: FrameResult) -> None:
    for line, masklet_id in enumerate(result.masklet_id.tolist(), start=1):
        tracks.writerow((name, line, masklet_id, short(result.score[line - 1])))
