"""Writes ``mot15.json``: what roboflow's ByteTrack makes of the detections in ``MASKLET_TEST_DATA/mot15``.

Its package is called ``trackers``, as ours is, so it runs in an environment of its own and from another folder::

    pip install trackers==2.6.1
    cd / && MASKLET_TEST_DATA=... python REPOSITORY/tests/golden/make_mot15.py REPOSITORY/tests/golden/mot15.json

Its defaults; scored by its own evaluation, which equals TrackEval's.
"""

from __future__ import annotations

import configparser
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv

from trackers import ByteTrackTracker
from trackers.eval import evaluate_mot_sequence

DETECTIONS = "det_sort_frcnn.txt"


def follow(folder: Path) -> list[str]:
    """MOT rows of one sequence."""
    info = configparser.ConfigParser()
    info.read(folder / "seqinfo.ini")
    rows = np.loadtxt(folder / "det" / DETECTIONS, delimiter=",")
    tracker, out = ByteTrackTracker(), []
    for frame in range(1, int(info["Sequence"]["seqLength"]) + 1):
        now = rows[rows[:, 0] == frame]
        boxes = np.concatenate([now[:, 2:4], now[:, 2:4] + now[:, 4:6]], axis=1)
        found = tracker.update(sv.Detections(xyxy=boxes, confidence=now[:, 6]))
        for (x1, y1, x2, y2), track in zip(found.xyxy, found.tracker_id, strict=True):
            if track >= 0:
                out.append(f"{frame},{track + 1},{x1},{y1},{x2 - x1},{y2 - y1},1,-1,-1,-1")
    return out


def pedestrians(path: Path) -> list[str]:
    """Ground truth as its evaluation reads it: with a class, which MOT15 has not, and without the rows of flag 0."""
    rows = [line.split(",") for line in path.read_text().split()]
    return [",".join([*row[:6], "1", "1", "1"]) for row in rows if row[6] != "0"]


def scores(folder: Path) -> dict[str, Any]:
    """HOTA and the counts that pool."""
    with tempfile.TemporaryDirectory() as scratch:
        result, truth = Path(scratch, "result.txt"), Path(scratch, "gt.txt")
        result.write_text("\n".join(follow(folder)) + "\n")
        truth.write_text("\n".join(pedestrians(folder / "gt" / "gt.txt")) + "\n")
        got = evaluate_mot_sequence(truth, result, ["CLEAR", "HOTA", "Identity"])
    return {
        "HOTA": float(got.HOTA.HOTA),
        "IDTP": int(got.Identity.IDTP),
        "IDFP": int(got.Identity.IDFP),
        "IDFN": int(got.Identity.IDFN),
        "IDSW": int(got.CLEAR.IDSW),
    }


def main(out: Path) -> None:
    """Write the numbers of every sequence."""
    folder = Path(os.environ["MASKLET_TEST_DATA"]) / "mot15"
    golden = {p.parent.name: scores(p.parent) for p in sorted(folder.glob("*/seqinfo.ini"))}
    out.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
