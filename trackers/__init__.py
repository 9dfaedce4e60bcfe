"""Trackers: what links the detections of one stream into tracklets.

A tracker is one file and one line in :data:`TRACKERS`. Importing this package loads neither torch nor scipy.
"""

from __future__ import annotations

TRACKERS: dict[str, str] = {
    "sam3_memory": "trackers.sam3_memory:Sam3MemoryTracker",
    "bytetrack": "trackers.bytetrack:ByteTrackTracker",
}
"""``tracker.name`` -> where its class is, as ``module:Class``. ``bytetrack`` needs no torch."""
