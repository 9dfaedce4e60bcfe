"""SA-Co/VEval: what SAM 3's evaluation toolkit scores, video-phrase pair by pair.

``saco/predictions.json`` is the bare list that its evaluators take; ``saco/ground_truth.json`` has the same masklets as
ground truth. Every phrase of the run makes a pair with every video, also where nothing was found: the negatives count.

Schema: sam3 ``scripts/eval/veval/README.md`` and ``sam3/eval/saco_veval_evaluators.py``. Absent frames are ``null``
(zero-area run lengths, which Meta's own files use, are read as absent too).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.sinks.intake import Intake
from pipeline.sinks.jsonio import dumps, write_object
from pipeline.sinks.reading import Categories, CheckedRun
from pipeline.sinks.ytvis import read_tracks, track_files, track_row, video_row
from pipeline.store import VideoEntry

PREDICTION_KEYS = ("video_id", "category_id", "score", "segmentations", "bboxes", "areas", "per_frame_scores")
"""What a prediction has; the evaluators need the lists to be as long as the video's ``file_names``."""

TRUTH_KEYS = ("video_id", "category_id", "segmentations", "bboxes", "areas", "iscrowd", "width", "height", "masklet_id")


class SaCo:
    """Writes ``predictions.json`` and ``ground_truth.json``; reads either."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Both files in one pass over the masklets, one of them in memory at a time."""
        categories, found = run.categories(), Counter[tuple[int, str]]()
        ids, pair_ids = count(1), count(1)
        with open(folder / "predictions.json", "w", encoding="utf-8", newline="\n") as predictions:

            def annotations() -> Iterator[dict[str, Any]]:
                separator = "[\n"
                for number, entry in enumerate(run.videos, start=1):
                    for masklet in run.masklets(entry):
                        found[number, masklet.prompt] += 1
                        row = track_row(masklet, number, entry, categories)
                        predictions.write(separator + dumps({k: row[k] for k in PREDICTION_KEYS}))
                        separator = ",\n"
                        yield {"id": next(ids), "noun_phrase": masklet.prompt, **{k: row[k] for k in TRUTH_KEYS}}
                predictions.write("]\n" if separator == ",\n" else "[]\n")

            write_object(
                folder / "ground_truth.json",
                {
                    "info": {"description": "masklets", "version": "1.0"},
                    "videos": (video_row(i, entry, "video_name") for i, entry in enumerate(run.videos, start=1)),
                    "annotations": annotations(),
                    "categories": ({"id": i, "name": name} for i, name in categories.items()),
                    "video_np_pairs": _pairs(run.videos, categories, found, pair_ids),
                },
            )
        return []

    def read(self, path: Path, intake: Intake) -> None:
        """Ground truth, or predictions with their ``ground_truth.json`` beside them."""
        read_tracks(track_files(path, "predictions.json", "ground_truth.json"), intake)


def _pairs(
    videos: list[VideoEntry], categories: Categories, found: Counter[tuple[int, str]], ids: Iterator[int]
) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(videos, start=1):
        for category, phrase in categories.items():
            masklets = found[number, phrase]
            if masklets or entry.prompts is None or phrase in entry.prompts:
                yield {
                    "id": next(ids),
                    "video_id": number,
                    "category_id": category,
                    "noun_phrase": phrase,
                    "num_masklets": masklets,
                }
