"""From a video's finished units to its rows in the run folder and its entry in the manifest."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from configs.schema import Config
from pipeline import stitch
from pipeline.decode import redact
from pipeline.results import FrameResult
from pipeline.store import ROW_SCHEMA, VideoEntry, VideoWriter, cannot_write, frames_of_parts, may_go_on
from workers.units import LOOKS, UnitReport, publish
from workers.video_state import read_looks


@dataclass(frozen=True, slots=True)
class Assembler:
    """Turns finished units into published videos.

    Args:
        config: the effective configuration.
        run: the run folder.
        units: where units were committed.
    """

    config: Config
    run: Path
    units: Path

    def publish(self, reports: Sequence[UnitReport], uri: str) -> VideoEntry:
        """Make the units' rows the video's and return its entry; the units are gone then.

        A video of several pieces whose one piece failed is ``partial``: the rest is stitched around the hole. Without
        room for the rows it is ``failed``, and its units stay.
        """
        good = [r for r in reports if r.status != "failed"]
        target = self.run / "masklets" / reports[0].video_id
        if len(reports) == 1:
            if good:
                publish(self.units, good[0].key, target)
            return entry_of(reports, uri)
        if not good:
            return entry_of(reports, uri)
        entry = entry_of(reports, uri)
        entry.chunks = [(r.start, r.stop) for r in good]
        try:
            entry.num_masklets, entry.links = self._stitch(good, target)
        except OSError as error:
            shutil.rmtree(_unfinished(target), ignore_errors=True)
            entry.status, entry.error = "failed", str(cannot_write(error, self.run))
            return entry
        if not any(may_go_on(r.error) for r in reports):
            for report in good:
                shutil.rmtree(self.units / report.key, ignore_errors=True)
        return entry

    def _stitch(self, reports: Sequence[UnitReport], target: Path) -> tuple[int, list[dict[str, Any]]]:
        """Write the stitched rows to ``target``, atomically; returns the number of masklets and the links."""
        spans = stitch.core_spans([(r.start, r.stop) for r in reports])
        looks = [read_looks(self.units / r.key / LOOKS) for r in reports]
        collectors = [stitch.TrackletCollector(s.ordinal, known) for s, known in zip(spans, looks, strict=True)]
        for collector, report in zip(collectors, reports, strict=True):
            for result in self._frames(report):
                collector.add(result)
        overlaps = [self._overlap(a, b) for a, b in itertools.pairwise(reports)]
        fps = max(_rate(r) for r in reports)
        links = stitch.link(
            spans,
            [t for c in collectors for t in c.tracklets()],
            overlaps,
            round(self.config.chunk.max_gap_s * fps),
        )
        temporary = _unfinished(target)
        shutil.rmtree(temporary, ignore_errors=True)
        count, where = self._write(temporary, spans, links, reports)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        return count, [_link_row(k, where) for k in links]

    def _write(
        self,
        folder: Path,
        spans: Sequence[stitch.ChunkSpan],
        links: Sequence[stitch.Link],
        reports: Sequence[UnitReport],
    ) -> tuple[int, Mapping[tuple[int, int], int]]:
        output, count = self.config.output, 0
        numbers: dict[tuple[int, int], int] = {}
        with VideoWriter(folder, rows_per_part=output.rows_per_part, frames_per_part=output.frames_per_part) as writer:
            for result in stitch.masklet_ids(spans, links, [self._frames(r) for r in reports], numbers):
                writer.write(result)
                count = max(count, int(result.masklet_id.max(initial=0)))
        return count, numbers

    def _overlap(self, earlier: UnitReport, later: UnitReport) -> dict[tuple[int, int], float]:
        first, last = later.start, earlier.stop
        return stitch.overlap_iou(self._frames(earlier, first, last), self._frames(later, first, last))

    def _frames(self, report: UnitReport, start: int = 0, stop: int = 1 << 31) -> Iterator[FrameResult]:
        """A unit's frames within a range, one part in memory at a time."""
        parts = sorted((self.units / report.key / "masklets").glob("part-*.parquet"))
        frame = pads.field("frame")
        for part in parts:
            rows = pads.dataset(part, schema=ROW_SCHEMA, format="parquet")
            table = rows.to_table(filter=(frame >= start) & (frame < min(stop, (1 << 31) - 1)))
            yield from frames_of_parts(table, report.video_id, (report.height, report.width))


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.stitching")


def _rate(report: UnitReport) -> float:
    numerator, _, denominator = (report.fps or "25/1").partition("/")
    return float(numerator) / float(denominator or 1)


def _link_row(link: stitch.Link, numbers: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    return {
        "masklet_id": numbers.get((link.chunk, link.track_id)) or numbers.get((link.next_chunk, link.next_track_id)),
        "frame": link.frame,
        "kind": link.kind,
        "confidence": link.confidence,
        "rival": link.rival,
        "weak": link.is_weak,
    }


def entry_of(reports: Sequence[UnitReport], uri: str) -> VideoEntry:
    """A video's manifest entry from its units' reports; counts of a stitched video are set by the caller."""
    first = next((r for r in reports if r.status != "failed"), reports[0])
    decoders: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for report in reports:
        decoders.update(report.decoders)
        counters.update(report.counters)
        seconds.update(report.timings_s)
    errors = [r.error for r in reports if r.error]
    return VideoEntry(
        first.video_id,
        redact(uri),
        _status(reports),
        first.width,
        first.height,
        first.fps,
        min((r.num_frames for r in reports if r.status != "failed"), default=0),
        _tracked(reports),
        first.num_masklets,
        max(decoders, key=lambda name: decoders[name], default=""),
        errors[0] if errors else None,
        dict(decoders),
        first.duration_s,
        dict(counters),
        {name: round(s, 3) for name, s in seconds.items()},
    )


def _status(reports: Sequence[UnitReport]) -> str:
    statuses = {r.status for r in reports}
    return statuses.pop() if len(statuses) == 1 else "partial"


def _tracked(reports: Sequence[UnitReport]) -> int:
    """Frames tracked, those of an overlap counted once."""
    shared = sum(
        round(max(a.stop - b.start, 0) * b.num_tracked / max(b.stop - b.start, 1))
        for a, b in itertools.pairwise(reports)
    )
    return sum(r.num_tracked for r in reports) - shared
