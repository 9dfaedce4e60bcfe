"""FiftyOne: ``fiftyone/``, a folder that ``Dataset.from_dir(dataset_type=fo.types.FiftyOneDataset)`` reads.

A sample per video with a ``masklets`` field on its frames: detections with a box in 0..1, the mask cut to the box, the
masklet id as ``index``. Videos are referred to where they are, not copied. FiftyOne itself is not needed to write this.

Schema: ``fiftyone.types.FiftyOneDataset``: ``metadata.json``, ``samples.json``, ``frames.json`` with masks as
zlib-packed ``.npy`` in BSON's extended JSON.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.masks import rle_boxes
from pipeline.results import FrameResult
from pipeline.sinks.jsonio import write_object
from pipeline.sinks.reading import CheckedRun, short
from pipeline.store import VideoEntry
from pipeline.types import BoolArray

FIELD = "masklets"


class FiftyOne:
    """Writes a dataset folder."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """``frames.json`` holds one document per frame with objects."""
        (folder / "metadata.json").write_text(json.dumps(_METADATA, indent=1) + "\n", encoding="utf-8")
        write_object(folder / "samples.json", {"samples": (_sample(entry) for entry in run.videos)})
        write_object(folder / "frames.json", {"frames": _frames(run)})
        return []


_METADATA = {
    "name": "masklets",
    "version": "1.0.0",
    "media_type": "video",
    "sample_fields": {
        "video_id": "fiftyone.core.fields.StringField",
        "frames": "fiftyone.core.fields.FrameSupportField",
    },
    "frame_fields": {FIELD: "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Detections)"},
    "info": {},
}


def _object_id(*parts: object) -> dict[str, str]:
    """A stable 12-byte id, so that exporting twice gives the same files."""
    return {"$oid": hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}


def _sample(entry: VideoEntry) -> dict[str, Any]:
    return {
        "_id": _object_id(entry.video_id),
        "filepath": entry.uri,
        "tags": [],
        "metadata": {
            "_cls": "VideoMetadata",
            "frame_width": entry.width,
            "frame_height": entry.height,
            "total_frame_count": entry.num_frames,
            "duration": entry.duration_s,
        },
        "_media_type": "video",
        "_rand": 0.0,
        "video_id": entry.video_id,
    }


def _frames(run: CheckedRun) -> Iterator[dict[str, Any]]:
    for entry in run.videos:
        for result in run.frames(entry):
            if len(result):
                yield {
                    "_id": _object_id(entry.video_id, result.index),
                    "_sample_id": _object_id(entry.video_id),
                    "frame_number": result.index + 1,
                    FIELD: {"_cls": "Detections", "detections": list(_detections(result))},
                }


def _detections(result: FrameResult) -> Iterator[dict[str, Any]]:
    height, width = result.source_size
    masks = result.masks()
    for i, box in enumerate(rle_boxes(result.rles).astype(int).tolist()):
        x1, y1, x2, y2 = box
        yield {
            "_id": _object_id(result.video_id, result.index, int(result.masklet_id[i])),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": result.prompt[i],
            "bounding_box": [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
            "mask": _packed(masks[i, y1:y2, x1:x2]),
            "confidence": short(result.score[i]),
            "index": int(result.masklet_id[i]),
        }


def _packed(mask: BoolArray) -> dict[str, Any]:
    """A mask as FiftyOne keeps arrays: ``zlib(npy)``, base64 in extended JSON."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(mask), allow_pickle=False)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii"), "subType": "00"}}
