"""Label Studio: ``labelstudio/tasks.json``, a task per video with its masklets as predicted video rectangles.

Label Studio has no mask tracks for video: boxes only, in percent of the frame. Frames count from 1. A rectangle is
switched off on the last frame before a gap and at its end, or Label Studio would interpolate.
``labelstudio/config.xml`` is the labelling interface the tasks belong to.

Schema: label-studio-ml-backend ``segment_anything_2_video/model.py``, Label Studio's ``VideoRectangle``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from pipeline.sinks.jsonio import dumps
from pipeline.sinks.reading import CheckedRun, rate_of, short
from pipeline.store import VideoEntry
from pipeline.types import Masklet


class LabelStudio:
    """Writes ``tasks.json`` and ``config.xml``."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Masklet by masklet, one of them in memory at a time."""
        prompts = dict.fromkeys(run.prompts)
        with open(folder / "tasks.json", "w", encoding="utf-8", newline="\n") as file:
            file.write("[")
            for number, entry in enumerate(run.videos):
                data = dumps({"video": entry.uri, "video_id": entry.video_id})
                head = f'{{"data": {data}, "predictions": [{{"model_version": "masklet", "result": ['
                file.write((",\n" if number else "\n") + head)
                scores = []
                for region, masklet in enumerate(run.masklets(entry)):
                    prompts.setdefault(masklet.prompt)
                    scores.append(float(masklet.score.mean()))
                    file.write((",\n" if region else "\n") + dumps(_region(masklet, entry)))
                file.write(f'], "score": {dumps(short(np.mean(scores) if scores else 0))}}}]}}')
            file.write("]\n")
        labels = "".join(f"    <Label value={quoteattr(prompt)}/>\n" for prompt in prompts)
        (folder / "config.xml").write_text(_CONFIG.format(labels=labels), encoding="utf-8")
        return ["masks became boxes: Label Studio has no mask tracks for video"]


_CONFIG = """<View>
  <Labels name="videoLabels" toName="video">
{labels}  </Labels>
  <Video name="video" value="$video"/>
  <VideoRectangle name="box" toName="video"/>
</View>
"""


def _region(masklet: Masklet, entry: VideoEntry) -> dict[str, Any]:
    duration_s = entry.duration_s if entry.duration_s is not None else float(entry.num_frames / rate_of(entry))
    return {
        "id": f"masklet-{masklet.masklet_id}",
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "origin": "prediction",
        "score": short(masklet.score.mean()),
        "value": {
            "framesCount": entry.num_frames,
            "duration": duration_s,
            "labels": [masklet.prompt],
            "sequence": list(_sequence(masklet, entry)),
        },
        "meta": {"masklet_id": masklet.masklet_id},
    }


def _sequence(masklet: Masklet, entry: VideoEntry) -> Iterator[dict[str, Any]]:
    follows = [*(np.diff(masklet.index) == 1).tolist(), False]
    for i, frame in enumerate(masklet.index.tolist()):
        x1, y1, x2, y2 = masklet.xyxy[i].astype(float).tolist()
        yield {
            "frame": frame + 1,
            "enabled": follows[i],
            "rotation": 0,
            "x": 100 * x1 / entry.width,
            "y": 100 * y1 / entry.height,
            "width": 100 * (x2 - x1) / entry.width,
            "height": 100 * (y2 - y1) / entry.height,
            "time": float(masklet.pts_s[i]),
        }
