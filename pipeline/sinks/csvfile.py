"""One flat table: ``csv/masklets.csv``, a row per masklet and frame, the mask as COCO run lengths in text."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.sinks.reading import CheckedRun, short

COLUMNS = (
    *("video_id", "frame", "pts_s", "masklet_id", "prompt", "score", "x1", "y1", "x2", "y2", "area_px"),
    *("rle_height", "rle_width", "rle_counts"),
)
"""As in ``RUN/masklets``, the run lengths spread over three columns."""


class Csv:
    """Writes ``masklets.csv``: UTF-8, comma, quoted as RFC 4180 says."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """All videos in one file, in time order."""
        with open(folder / "masklets.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for entry in run.videos:
                for result in run.frames(entry):
                    areas = result.area_px().tolist()
                    for i, masklet_id in enumerate(result.masklet_id.tolist()):
                        head = (result.video_id, result.index, result.pts_s, masklet_id, result.prompt[i])
                        box = [short(v) for v in result.xyxy[i]]
                        rle = (*result.rles[i].size, result.rles[i].counts.decode("ascii"))
                        writer.writerow((*head, short(result.score[i]), *box, areas[i], *rle))
        return []
