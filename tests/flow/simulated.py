"""A cluster of nodes with pretended GPUs, and workers that sleep instead of tracking."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from configs.load import load_config
from configs.schema import Config
from pipeline.types import BoxPrompt, Prompts
from workers.ray_executor import RayExecutor, WorkerSpec
from workers.units import Unit, UnitFolder, UnitProgress, UnitReport

NUM_NODES, GPUS_PER_NODE = 4, 2


class SleepingWorker:
    """Sleeps a unit's ``cost`` in seconds and says in its report on which GPU, and from when to when."""

    def __init__(self, config: Config, prompts: Prompts, boxes: list[BoxPrompt], meeting: str) -> None:
        context = ray.get_runtime_context()
        self._place = f"{context.get_node_id()}:{context.get_accelerator_ids()['GPU'][0]}"
        folder = Path(meeting)
        (folder / self._place.replace(":", "-")).touch()
        # All start together, so that the makespan is the schedule's and not that of eight processes that load.
        while len(list(folder.iterdir())) < NUM_NODES * GPUS_PER_NODE:
            time.sleep(0.05)

    def process(self, unit: Unit, units: Path) -> Generator[UnitProgress | UnitReport]:
        """Sleep, then commit an empty unit."""
        folder, started = UnitFolder(units, unit.key), time.time()
        yield UnitProgress(unit.key, unit.video_id, 0, 1, 0)
        time.sleep(unit.cost)
        report = UnitReport(unit.key, unit.video_id, unit.ordinal, "done", decoders={self._place: 1})
        report.timings_s = {"from": started, "to": time.time()}
        folder.commit(report)
        yield report

    def stop(self) -> None:
        """Nothing to stop."""


@dataclass(frozen=True)
class Schedule:
    """Who did what."""

    reports: list[UnitReport]
    cost_s: dict[str, float]
    """By video."""

    @property
    def loads_s(self) -> dict[str, float]:
        """Seconds of work by GPU."""
        loads: dict[str, float] = {}
        for report in self.reports:
            (place,) = report.decoders
            loads[place] = loads.get(place, 0.0) + self.cost_s[report.video_id]
        return loads

    @property
    def balance(self) -> float:
        """The busiest GPU's work against an equal share: the makespan over the ideal one, hand-outs taking no time."""
        return max(self.loads_s.values()) / (sum(self.cost_s.values()) / (NUM_NODES * GPUS_PER_NODE))

    @property
    def overlap(self) -> int:
        """The most units that one GPU had at the same time; 1 is what a GPU worker per GPU means."""
        most = 0
        for place in self.loads_s:
            spans = [r.timings_s for r in self.reports if place in r.decoders]
            most = max(most, *(sum(s["from"] <= t["from"] < s["to"] for s in spans) for t in spans))
        return most

    @property
    def makespan_s(self) -> float:
        """From the first start to the last end."""
        return max(r.timings_s["to"] for r in self.reports) - min(r.timings_s["from"] for r in self.reports)


def uneven_costs(count: int, mean_s: float, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Lengths as videos have them: many short, a few long (log-normal, sigma 1), their mean as asked."""
    costs = np.random.default_rng(seed).lognormal(0.0, 1.0, count)
    scaled: np.ndarray[Any, np.dtype[np.float64]] = costs * mean_s / costs.mean()
    return scaled


@contextmanager
def gpu_cluster() -> Iterator[Any]:
    """A head without resources and four nodes of two GPUs that do not exist."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        for _ in range(NUM_NODES):
            cluster.add_node(num_cpus=4, num_gpus=GPUS_PER_NODE, wait=False, **store)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def run_uneven(folder: Path, *, count: int = 200, mean_s: float = 0.2, seed: int = 7) -> Schedule:
    """Do ``count`` uneven units on the connected cluster, longest first as a job does."""
    costs = {f"v{i:03d}": float(c) for i, c in enumerate(uneven_costs(count, mean_s, seed))}
    todo = [Unit(v, v, "", cost=c) for v, c in sorted(costs.items(), key=lambda item: -item[1])]
    (folder / "meeting").mkdir(parents=True)
    (folder / "units").mkdir()
    spec = WorkerSpec(load_config(None, ["prompts=[x]"]), [], str(folder / "meeting"), SleepingWorker)
    executor = RayExecutor(spec, Prompts(("x",), np.zeros((1, 1, 1), np.float32), np.ones((1, 1), bool)))
    try:
        reports = [e for e in executor.run(todo, folder / "units") if isinstance(e, UnitReport)]
    finally:
        executor.close()
    return Schedule(reports, costs)


def main() -> None:
    """Run it once and print what came out as JSON."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--mean-s", type=float, default=0.2)
    mean_s = arguments.parse_args().mean_s
    with tempfile.TemporaryDirectory() as folder, gpu_cluster():
        schedule = run_uneven(Path(folder) / "job", mean_s=mean_s)
    ideal_s = sum(schedule.cost_s.values()) / (NUM_NODES * GPUS_PER_NODE)
    found = {
        "units": len({r.key for r in schedule.reports}),
        "places": len(schedule.loads_s),
        "ideal_s": round(ideal_s, 3),
        "makespan_s": round(schedule.makespan_s, 3),
        "balance": round(schedule.balance, 4),
        "at_once_on_a_place": schedule.overlap,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    # Under its importable name, so that actors find the worker class.
    from tests.flow.simulated import main as run

    run()
