"""``uv run python -m benchmarks.distributed``: what jobs on Ray must reach, measured on this machine.

* ``scaling``: 24 clips of 300 frames with the tiny model and one phrase, one torch thread per worker: ``--ray off``,
  Ray with one worker and Ray with two take turns on a third of the clips each; frames/s from the moment that all
  workers have their models to the last report, and the median of the three ratios. Start-up is listed beside it. Rows
  must be equal.
* ``schedule``: four nodes of two pretended GPUs, 200 uneven videos of 1 s on average that are slept, not tracked:
  makespan over the ideal one.
* ``many``: 1,000 entries of tiny clips, one in twenty broken: statuses, time, peak memory of the driver.
* ``workers``: a few short clips with the tiny model and two phrases on 1, 2 and 4 workers: equal rows.
* what Ray's object store held and spilled during all this.

Only when they are named, because each takes longer than all of these:

* ``chunked``: seeded clips tracked whole and in pieces with the tiny model (:mod:`benchmarks.chunked`).
* ``kills``: the matrix of ``tests/flow/test_kills.py``: something dies at a seeded moment, and the rows are the same.

Two workers on two cores can only be judged while nothing else runs: the load average is part of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.chunked import compare
from benchmarks.parts import Part, Results
from configs.load import load_config
from configs.schema import Config
from pipeline import api, open_run
from pipeline.job import Executor, Job, Silent
from pipeline.sources.file import VideoItem
from pipeline.store import Manifest, RunWriter
from tests.e2e.clips import write_clip
from tests.flow.many import track_many
from tests.flow.worlds import ROOT
from workers.units import UnitProgress

RESULTS = Path(__file__).parent / "results"
ONE_PHRASE, TWO_PHRASES = (
    load_config(None, [f"prompts=[{phrases}]", "device.threads=1", "device.name=cpu"])
    for phrases in ("red circle", "red circle, blue square")
)
ROUNDS = 3
DEFAULT_PARTS = ("scaling", "schedule", "many", "workers")
_NOT_PASSED = ("failure", "error", "skipped")
NUM_WORKERS = (1, 2, 4)
WORKERS_CLIPS, WORKERS_FRAMES = 6, 24


@dataclass(frozen=True)
class Rate:
    """One contestant's turn."""

    name: str
    frames_per_s: float
    """From when all its workers were up."""
    start_up_s: float
    """Until then, the executor's own start included."""
    seconds: float


class _Clock:
    """Passes an executor's events on and notes when all workers have spoken, and what was done until then."""

    def __init__(self, executor: Executor, started: float) -> None:
        self._executor, self._started = executor, started
        self.num_workers, self.num_retries = executor.num_workers, 0
        self.up_s = self.end_s = 0.0
        self._heard: set[str] = set()
        self._done: dict[str, int] = {}
        self.done_before = 0

    def run(self, todo: Any, units: Path) -> Any:
        """See :class:`pipeline.job.Executor`."""
        for event in self._executor.run(todo, units):
            self.end_s = time.perf_counter() - self._started
            if isinstance(event, UnitProgress) and not self.up_s:
                self._heard.add(event.key)
                self._done[event.key] = event.num_done
                if len(self._heard) >= self.num_workers:
                    self.up_s, self.done_before = self.end_s, sum(self._done.values())
            yield event

    def close(self) -> None:
        """See :class:`pipeline.job.Executor`."""
        self._executor.close()


def turn(
    name: str, clips: Sequence[VideoItem], placement: api.Placement, out: Path, config: Config = ONE_PHRASE
) -> Rate:
    """Track the clips and time it."""
    started = time.perf_counter()
    clock = _Clock(api.open_executor(config, clips, placement), started)
    try:
        manifest = Manifest("0", {"fingerprint": "f"}, list(config.prompts), [], "d")
        done = Job(config, RunWriter.create(out, manifest, ""), clock).execute(clips, Silent())
    finally:
        clock.close()
    frames = done.counts["frames"] - clock.done_before
    return Rate(name, frames / (clock.end_s - clock.up_s), clock.up_s, clock.end_s)


def scaling(folder: Path, num_clips: int, num_frames: int) -> dict[str, Any]:
    """Local, one and two Ray workers in turns."""
    from workers.ray_session import connect

    contestants = {"off": api.Placement(), "ray 1": api.Placement("auto", 1), "ray 2": api.Placement("auto", 2)}
    session = connect("local", num_cpus=2)
    rounds, equal = [], True
    clips = [write_clip(folder / f"c{i:02d}.mp4", num_frames=num_frames) for i in range(num_clips)]
    for number in range(ROUNDS):
        items = [VideoItem(c.stem, str(c)) for c in clips[number::ROUNDS]]
        outs = {name: folder / f"{name}-{number}" for name in contestants}
        rounds.append([turn(name, items, place, outs[name]) for name, place in contestants.items()])
        tables = [open_run(out).table() for out in outs.values()]
        equal = equal and all(t.equals(tables[0]) for t in tables)
        print(json.dumps({"load": os.getloadavg()[0], "round": [asdict(r) for r in rounds[-1]]}), flush=True)
    store = object_store()
    session.close()
    rates = [{r.name: r.frames_per_s for r in turns} for turns in rounds]
    return {
        "rows_equal": equal,
        "two_workers_over_one": statistics.median(r["ray 2"] / r["ray 1"] for r in rates),
        "ray_one_over_off": statistics.median(r["ray 1"] / r["off"] for r in rates),
        "frames_per_s": {name: statistics.median(r[name] for r in rates) for name in contestants},
        "start_up_s": {r.name: r.start_up_s for r in rounds[0]},
        "object_store": store,
        "rounds": [[asdict(r) for r in turns] for turns in rounds],
    }


def object_store() -> dict[str, float]:
    """Megabytes that lie in the connected cluster's store, and that were spilled from it so far."""
    import ray
    from ray._private.internal_api import memory_summary

    # Without an address Ray looks for whatever cluster runs on this machine.
    return read_summary(memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))


def read_summary(text: str) -> dict[str, float]:
    """What Ray's summary says of its store. It is silent about spilling where there was none.

    Raises:
        ValueError: it does not read as it used to.
    """
    in_store = re.search(r"Plasma memory usage ([\d.]+) MiB", text)
    spilled = re.search(r"^Spilled ([\d.]+) MiB", text, re.MULTILINE)
    if in_store is None or (spilled is None and "spill" in text.lower()):
        raise ValueError(f"Ray words its summary of the object store in another way: {text}")
    return {"in_store_mb": float(in_store[1]), "spilled_mb": float(spilled[1]) if spilled else 0.0}


def schedule(folder: Path, mean_s: float) -> dict[str, Any]:
    """The simulated cluster, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.flow.simulated", "--mean-s", str(mean_s)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return {**found, "makespan_over_ideal": found["makespan_s"] / found["ideal_s"]}


def workers(folder: Path, num_clips: int, num_frames: int) -> dict[str, Any]:
    """The same clips on 1, 2 and 4 workers."""
    from workers.ray_session import connect

    clips = [write_clip(folder / f"c{i}.mp4", num_frames=num_frames + 4 * i) for i in range(num_clips)]
    items = [VideoItem(c.stem, str(c)) for c in clips]
    session = connect("local", num_cpus=4)
    try:
        turns = [turn(f"ray {n}", items, api.Placement("auto", n), folder / f"{n}", TWO_PHRASES) for n in NUM_WORKERS]
        store = object_store()
    finally:
        session.close()
    tables = [open_run(folder / f"{n}").table() for n in NUM_WORKERS]
    return {
        "clips": num_clips,
        "rows": len(tables[0]),
        "rows_equal": all(t.equals(tables[0]) for t in tables),
        "seconds": {t.name: t.seconds for t in turns},
        "object_store": store,
    }


def chunked(folder: Path, num_clips: int, num_frames: int) -> dict[str, Any]:
    """Whole and in pieces, clip by clip; HOTA in points."""
    rows = []
    for seed in range(num_clips):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rows.append(compare(seed, num_frames, Path(place), with_model=True))
        print(json.dumps(asdict(rows[-1])), flush=True)
    lost = [100 * (r.hota_whole - r.hota_chunked) for r in rows]
    return {
        "clips": num_clips,
        "frames": num_frames,
        "idf1_median": statistics.median(r.idf1 for r in rows),
        "idf1_least": min(r.idf1 for r in rows),
        "hota_lost_median": statistics.median(lost),
        "hota_lost_most": max(lost),
        "every_frame_once": all(r.is_complete for r in rows),
        "rows": [asdict(r) for r in rows],
    }


def kills(folder: Path, selection: str) -> dict[str, Any]:
    """The matrix of kill tests, in a process of its own."""
    file, results = "tests/flow/test_kills.py", folder / "kills.xml"
    started = time.perf_counter()
    command = [sys.executable, "-m", "pytest", file, "-m", "slow", "-k", selection, f"--junitxml={results}"]
    subprocess.run(command, cwd=ROOT, check=False)
    suite = ElementTree.parse(results).getroot()
    cases = {case.get("name", ""): case for case in suite.iter("testcase")}
    failed = sorted(name for name, case in cases.items() if any(case.find(k) is not None for k in _NOT_PASSED))
    return {
        "total": len(cases),
        "passed": len(cases) - len(failed),
        "failed": failed,
        "seconds": time.perf_counter() - started,
    }


def many(folder: Path, count: int) -> dict[str, Any]:
    """Very many entries, on Ray with two workers."""
    outcome = track_many(folder / "many", count, "--ray", "local", "--workers", "2")
    statuses = {v.video_id: v.status for v in open_run(folder / "many" / "run").videos}
    return {
        "entries": count,
        "right_statuses": statuses == outcome.expected,
        "broken": sum(s == "failed" for s in outcome.expected.values()),
        "exit_code": outcome.exit_code,
        "seconds": outcome.seconds,
        "driver_peak_rss_mb": outcome.peak_rss_mb,
    }


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description="Jobs on Ray: scaling, schedule, many clips.")
    parser.add_argument("parts", nargs="*", default=list(DEFAULT_PARTS), help="also: chunked, kills")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--chunked-clips", type=int, default=20)
    parser.add_argument("--chunked-frames", type=int, default=900)
    parser.add_argument("--kills", default="any_moment", help="which of the kill tests (pytest's -k)")
    parser.add_argument("--mean-s", type=float, default=1.0, help="mean length of a simulated video")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table and the numbers are written")
    options = parser.parse_args()
    parts: dict[str, Part] = {
        "scaling": lambda folder: scaling(folder, options.clips, options.frames),
        "schedule": lambda folder: schedule(folder, options.mean_s),
        "many": lambda folder: many(folder, options.entries),
        "workers": lambda folder: workers(folder, WORKERS_CLIPS, WORKERS_FRAMES),
        "chunked": lambda folder: chunked(folder, options.chunked_clips, options.chunked_frames),
        "kills": lambda folder: kills(folder, options.kills),
    }
    if unknown := [name for name in options.parts if name not in parts]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    Results(options.results, "distributed", "Jobs on Ray", _ROWS).measure(options.parts, parts)


_ROWS = (
    ("scaling", "two_workers_over_one", "2 Ray workers over 1, frames/s", ">= 1.7"),
    ("scaling", "ray_one_over_off", "1 Ray worker over `--ray off`, frames/s", "> 0.9"),
    ("scaling", "rows_equal", "rows of all three equal", "yes"),
    ("scaling", "frames_per_s", "frames/s", ""),
    ("scaling", "start_up_s", "start-up, s (not counted)", ""),
    ("scaling", "object_store", "object store", "nothing spilled"),
    ("schedule", "places", "GPUs with a worker, of 8", "8"),
    ("schedule", "at_once_on_a_place", "units at once on one GPU", "1"),
    ("schedule", "makespan_over_ideal", "makespan of 200 uneven videos over ideal", "<= 1.15"),
    ("many", "entries", "entries", "1000"),
    ("many", "right_statuses", "each with the right status", "yes"),
    ("many", "exit_code", "exit code", "1"),
    ("many", "seconds", "seconds", ""),
    ("many", "driver_peak_rss_mb", "driver's peak memory, MB", "< 1000"),
    ("workers", "rows_equal", "rows of 1, 2 and 4 workers equal", "yes"),
    ("workers", "object_store", "object store", "nothing spilled"),
    ("chunked", "clips", "clips, whole and in pieces", "20"),
    ("chunked", "idf1_median", "IDF1 of pieces against whole, median", ">= 0.98"),
    ("chunked", "idf1_least", "IDF1 of pieces against whole, least", ""),
    ("chunked", "hota_lost_median", "HOTA lost against the truth, points, median", "<= 1"),
    ("chunked", "hota_lost_most", "HOTA lost against the truth, points, most", ""),
    ("chunked", "every_frame_once", "every frame exactly once", "yes"),
    ("kills", "total", "kill tests", "30"),
    ("kills", "passed", "of these with the rows of an undisturbed run", "30"),
    ("kills", "seconds", "seconds", ""),
)


if __name__ == "__main__":
    main()
