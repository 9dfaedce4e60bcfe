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
from pipeline.store import (
    ROW_SCHEMA,
    VideoEntry,
    VideoWriter,
    cannot_write,
    frames_of_parts,
    has_more_to_do,
    may_go_on,
)
from workers.units import LOOKS, UnitReport, link_parts, remove_unit, replace_folder
from workers.video_state import read_looks

_ERRORS_SHOWN = 3


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
        """Make the units' rows the video's and return its entry; the units stay until :meth:`settle`.

        A video of several pieces whose one piece failed is ``partial``: the rest is stitched around the hole, and the
        entry names what is missing. Without room for the rows it is ``failed``.
        """
        good = [r for r in reports if r.status != "failed"]
        target = self.run / "masklets" / reports[0].video_id
        entry = entry_of(reports, uri)
        if not good:
            return entry
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if len(reports) == 1:
                self._take(good[0], target)
            else:
                entry.chunks, entry.missing = [(r.start, r.stop) for r in good], missing_ranges(reports)
                entry.num_masklets, entry.links = self._stitch(good, target)
        except OSError as error:
            shutil.rmtree(_unfinished(target), ignore_errors=True)
            entry.status, entry.error = "failed", str(cannot_write(error, self.run))
        return entry

    def settle(self, reports: Sequence[UnitReport], entry: VideoEntry) -> None:
        """Remove the units of a video whose rows and entry are safe, unless a resumed run has a use for them."""
        if not has_more_to_do(entry):
            for report in reports:
                remove_unit(self.units, report.key)

    def _take(self, report: UnitReport, target: Path) -> None:
        """Make the parts of a video's only unit its own."""
        temporary = _unfinished(target)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        link_parts(self.units / report.key / "masklets", temporary)
        replace_folder(temporary, target)

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
        replace_folder(temporary, target)
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
        _error_of(reports),
        dict(decoders),
        first.duration_s,
        dict(counters),
        {name: round(s, 3) for name, s in seconds.items()},
    )


def _error_of(reports: Sequence[UnitReport]) -> str | None:
    """All that went wrong in a video's units, what a new try may mend first; one line."""
    errors = list(dict.fromkeys(r.error for r in reports if r.error))
    errors.sort(key=lambda error: not may_go_on(error))
    more = f"; and {len(errors) - _ERRORS_SHOWN} more" if len(errors) > _ERRORS_SHOWN else ""
    return "; ".join(errors[:_ERRORS_SHOWN]) + more if errors else None


def missing_ranges(reports: Sequence[UnitReport]) -> list[tuple[int, int]]:
    """The frames of failed pieces that no other piece covers, as ``(first, one past last)``, ascending.

    ``reports`` are in the order of the video.
    """
    found: list[tuple[int, int]] = []
    good = [r for r in reports if r.status != "failed"]
    for report in (r for r in reports if r.status == "failed"):
        start = max([report.start, *(g.stop for g in good if g.ordinal < report.ordinal)])
        stop = min([report.stop, *(g.start for g in good if g.ordinal > report.ordinal)])
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], stop)
        elif start < stop:
            found.append((start, stop))
    return found


def _status(reports: Sequence[UnitReport]) -> str:
    statuses = {r.status for r in reports}
    return statuses.pop() if len(statuses) == 1 else "partial"


def _tracked(reports: Sequence[UnitReport]) -> int:
    """Frames tracked, those of an overlap counted once."""
    reports = [r for r in reports if r.status != "failed"]
    shared = sum(
        round(max(a.stop - b.start, 0) * b.num_tracked / max(b.stop - b.start, 1))
        for a, b in itertools.pairwise(reports)
    )
    return sum(r.num_tracked for r in reports) - shared
