"""BURST: ``burst/masklets.json``, per sequence and frame the masks by track id.

One file with all videos, alone in its folder, as TrackEval's reader wants it. Category ids count the run's phrases
(BURST's own are those of TAO's table, which has no free phrases); ``categories`` names them.

Schema: TrackEval ``burst_helpers/format_converter.py``; BURST-benchmark's "annotation format".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.results import FrameResult
from pipeline.sinks.jsonio import write_members
from pipeline.sinks.reading import Categories, CheckedRun, rate_of, short
from pipeline.store import VideoEntry


class Burst:
    """Writes one JSON file."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Sequence by sequence, frame by frame."""
        categories = run.categories()
        with open(folder / "masklets.json", "w", encoding="utf-8", newline="\n") as file:
            file.write('{"split": "test",\n"sequences": [')
            for number, entry in enumerate(run.videos):
                file.write(",\n" if number else "\n")
                write_members(file, _sequence(run, entry, number, categories))
            file.write("],\n")
            file.write('"categories": ')
            write_members(file, {name: i for i, name in categories.items()})
            file.write("}\n")
        return ["categories are numbers of this run, not TAO's"]


def _sequence(run: CheckedRun, entry: VideoEntry, number: int, categories: Categories) -> dict[str, Any]:
    paths = [f"{frame:05d}.jpg" for frame in range(entry.num_frames)]
    track_categories: dict[str, int] = {}
    return {
        "id": number,
        "dataset": "masklet",
        "seq_name": entry.video_id,
        "fps": float(rate_of(entry)),
        "width": entry.width,
        "height": entry.height,
        "all_image_paths": paths,
        "annotated_image_paths": paths,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "segmentations": _frames(run, entry, track_categories, categories),
        "track_category_ids": track_categories,
    }


def _frames(
    run: CheckedRun, entry: VideoEntry, track_categories: dict[str, int], categories: Categories
) -> Iterator[dict[str, Any]]:
    """One object per source frame; ``track_categories`` fills as tracks appear, and is written after."""
    following = 0
    for result in run.frames(entry):
        yield from ({} for _ in range(following, result.index))
        for masklet_id, prompt in zip(result.masklet_id.tolist(), result.prompt, strict=True):
            track_categories.setdefault(str(masklet_id), categories.id_of(prompt))
        yield _masks(result)
        following = result.index + 1
    yield from ({} for _ in range(following, entry.num_frames))


def _masks(result: FrameResult) -> dict[str, Any]:
    return {
        str(masklet_id): {"rle": rle.counts.decode("ascii"), "is_gt": False, "score": short(score)}
        for masklet_id, rle, score in zip(result.masklet_id.tolist(), result.rles, result.score, strict=True)
    }
