"""GeoJSON: ``geojson/VIDEO.geojson``, a feature per masklet and frame, polygons with holes in pixels, y down.

Coordinates are pixel edges of the source frame. Outer rings run counter-clockwise and holes clockwise as RFC 7946 wants
(in its y-up sense of the numbers). There is no coordinate system on earth: viewers that assume one must be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.sinks.jsonio import write_object
from pipeline.sinks.polygons import Polygon, Ring, Tracer
from pipeline.sinks.reading import CheckedRun, short
from pipeline.store import VideoEntry


class GeoJson:
    """Writes a feature collection per video."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Features in time order."""
        tracer = Tracer()
        for entry in run.videos:
            about = {"video_id": entry.video_id, "width": entry.width, "height": entry.height, "fps": entry.fps}
            write_object(
                folder / f"{entry.video_id}.geojson",
                {"type": "FeatureCollection", "masklet": about, "features": _features(run, entry, tracer)},
            )
        return tracer.notes()


def _features(run: CheckedRun, entry: VideoEntry, tracer: Tracer) -> Iterator[dict[str, Any]]:
    for result in run.frames(entry):
        for i, masklet_id in enumerate(result.masklet_id.tolist()):
            polygons = tracer.polygons(result.rles[i])
            yield {
                "type": "Feature",
                "properties": {
                    "video_id": entry.video_id,
                    "frame": result.index,
                    "pts_s": result.pts_s,
                    "masklet_id": masklet_id,
                    "prompt": result.prompt[i],
                    "score": short(result.score[i]),
                },
                "geometry": {"type": "MultiPolygon", "coordinates": [_rings(p) for p in polygons]},
            }


def _rings(polygon: Polygon) -> list[list[list[int]]]:
    return [_closed(polygon.outer, 1), *(_closed(hole, -1) for hole in polygon.holes)]


def _closed(ring: Ring, sign: int) -> list[list[int]]:
    """The ring in the wanted direction, its first vertex repeated at the end."""
    x, y = ring[:, 0].astype(int), ring[:, 1].astype(int)
    doubled_area = int((x * [*y[1:], y[0]] - y * [*x[1:], x[0]]).sum())
    points = [[int(a), int(b)] for a, b in zip(x, y, strict=True)]
    points = points if doubled_area * sign > 0 else points[::-1]
    return [*points, points[0]]
