"""``uv run python -m benchmarks.live``: what live streams must reach, measured on this machine with the tiny model.

* ``latency``: from the moment a picture is painted (it shows a clock) to its rows in a sink, at 10 frames/s over RTSP.
* ``equality``: a film over RTSP at ``--latency 15`` gives the rows of the same film as a file.
* ``cameras``: eight cameras at 5 frames/s and one phrase, on two Ray workers, one camera broken, in two ways: rates,
  drops, fairness.
* ``chaos``: the camera's process is killed twenty times, and between freezes, talks garbage and changes its size.
* ``kill``: the worker's process is killed at the default limits and started again: ids, and rows that are missing.
* ``soak``: one camera for 20,000 frames with eight objects that come and go: memory, time per frame, ids. For a shorter
  one, ``soak --frames 4000``; with ``--folder`` it goes on after a break.

Parts are chosen by name and merged into ``benchmarks/results/live.json`` and ``.md``. The load average is part of the
result: every limit is for two cores with nothing else on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.live_parts import all_cameras, chaos, equality, kill, latencies, tiny_models
from benchmarks.live_soak import WARM_UP, soak
from benchmarks.parts import Part, Results

RESULTS = Path(__file__).parent / "results"
PARTS = ("latency", "equality", "cameras", "chaos", "kill", "soak")


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--frames", type=int, default=20_000, help="of the soak")
    parser.add_argument("--film", type=int, default=320, help="frames of the film of equality")
    parser.add_argument("--seconds", type=float, default=20, help="of latency and cameras, each time")
    parser.add_argument("--kills", type=int, default=20, help="of the camera, in chaos")
    parser.add_argument("--restarts", type=int, default=2, help="of the worker, in kill")
    parser.add_argument("--folder", type=Path, help="of the soak: its log and state; started again, it goes on")
    parser.add_argument("--set", action="append", default=[], help="of the soak: section.key=value")
    parser.add_argument("--tracker", default="sam3_memory", help="of the soak")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table and the numbers are written")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    parts = runners(args)
    Results(args.results, "live", "Live streams", _ROWS).measure(args.parts, parts)


def runners(args: argparse.Namespace) -> dict[str, Part]:
    """Each part as a function of an empty folder."""
    models = tiny_models() if set(args.parts) - {"soak", "kill", "cameras"} else None

    def run_soak(folder: Path) -> dict[str, Any]:
        warm_up = min(WARM_UP, args.frames // 4)
        kept = args.folder or folder
        return soak(args.frames, kept, tracker=args.tracker, assignments=args.set, warm_up=warm_up)

    def with_models(part: Callable[..., dict[str, Any]], *values: Any) -> Part:
        return lambda folder: part(models, folder, *values)

    return {
        "latency": with_models(latencies, args.seconds),
        "equality": with_models(equality, args.film),
        "cameras": lambda folder: all_cameras(folder, args.seconds),
        "chaos": with_models(chaos, args.kills),
        "kill": lambda folder: kill(folder, args.restarts),
        "soak": run_soak,
    }


_ROWS = (
    ("latency", "p95_ms", "picture to row beyond the hotstart, p95 of the worse of both, ms", "< 250"),
    ("latency", "latency_0", "without hotstart", ""),
    ("latency", "latency_15", "15 frames of hotstart", ""),
    ("equality", "rows_equal", "rows over RTSP at latency 15 equal those of the file", "yes"),
    ("equality", "frames", "frames of it", ">= 300"),
    ("equality", "rows", "rows of it", ""),
    ("equality", "pts_differ_ms", "stream times differ by at most, ms", ""),
    ("cameras", "cameras_with_rows", "cameras of eight that keep going beside a broken one", "7"),
    ("cameras", "lowest_fps", "the slowest of them, frames/s of 5", ">= 4.75"),
    ("cameras", "most_dropped", "largest share dropped", ""),
    ("cameras", "fairness", "largest less smallest share dropped", "< 0.05"),
    ("cameras", "counted", "every frame was tracked or counted as dropped", "yes"),
    ("chaos", "kills", "kills of the camera", "20"),
    ("chaos", "rounds", "with freezes, garbage and changes of size", ""),
    ("chaos", "came_back", "came back", "all"),
    ("chaos", "worst_s", "at the latest after the camera, s", "< 5"),
    ("chaos", "ids_kept", "every object has one id", "yes"),
    ("chaos", "ids_by_phrase", "ids", ""),
    ("chaos", "sessions", "sessions", "1"),
    ("chaos", "one_event_per_gap", "every gap is one event, and one for its end", "yes"),
    ("chaos", "gaps", "gaps", ""),
    ("chaos", "holes_without_event", "holes in the rows without an event", "0"),
    ("kill", "ids_go_on", "after SIGKILL of the worker, ids go on", "yes"),
    ("kill", "missing_s", "rows missing from the run folder, s", "<= 10"),
    ("kill", "missing_and_not_said", "missing frames that no event names", "0"),
    ("kill", "rows_twice", "rows that are there twice", "0"),
    ("kill", "longest_gap_s", "longest gap, s", ""),
    ("soak", "frames", "frames", "20000"),
    ("soak", "objects_live_mean", "objects at once", "8"),
    ("soak", "rss_slope_mb_per_10k", "memory, MB per 10,000 frames", "< 1"),
    ("soak", "slope_frames", "over frames", ""),
    ("soak", "in_turns_cpu_p95_ratio", "time per frame, p95, end over start, in turns", "<= 1.1"),
    ("soak", "in_turns_cpu_ms_p95", "start and end, CPU ms", ""),
    ("soak", "last_session", "last session", "0"),
    ("soak", "ids_never_reused", "ids never reset", "yes"),
    ("soak", "masklets", "masklets", ""),
    ("soak", "discs", "objects that came", ""),
)


if __name__ == "__main__":
    main()
