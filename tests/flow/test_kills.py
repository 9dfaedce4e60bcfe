"""Whatever dies, whenever: the rows equal those of an undisturbed run. A sample by default, 30 under slow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import api, open_run
from pipeline.job import Job, Silent
from pipeline.store import Manifest, RunWriter
from tests.flow.worlds import CHUNKED, World, children, finish, start_driver, wait_for_work
from workers.units import Unit, UnitProgress, UnitReport

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.timeout(900),
    # Ray leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

KINDS = ("worker", "decode", "driver", "node")
SAMPLE = [("worker", 0), ("decode", 1), ("driver", 2), ("node", 3)]
MATRIX = [(KINDS[seed % 4], seed) for seed in range(4, 34)]


class Striking:
    """Passes an executor's events on and, at a seeded one, lets something die."""

    def __init__(self, executor: Any, seed: int, strike: Any) -> None:
        rng = np.random.default_rng(seed)
        self.executor, self._strike = executor, strike
        self._countdown, self._delay_s = int(rng.integers(2, 9)), float(rng.uniform(0, 0.4))
        self.has_struck = False

    @property
    def num_workers(self) -> int:
        return int(self.executor.num_workers)

    @property
    def num_retries(self) -> int:
        return int(self.executor.num_retries)

    def run(self, todo: Iterable[Unit], units: Path) -> Generator[UnitProgress | UnitReport]:
        for event in self.executor.run(todo, units):
            self._countdown -= 1
            if self._countdown <= 0 and not self.has_struck and isinstance(event, UnitProgress):
                time.sleep(self._delay_s)
                self.has_struck = self._strike(self.executor, event)
            yield event

    def close(self) -> None:
        self.executor.close()


def kill_worker(executor: Any, event: UnitProgress) -> bool:
    pid = executor.worker_pids().get(event.key)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    return pid is not None


def kill_decoder(executor: Any, event: UnitProgress) -> bool:
    pid = executor.worker_pids().get(event.key)
    victims = children(pid, "decode_child") if pid is not None else []
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return bool(victims)


def run_struck(world: World, folder: Path, seed: int, strike: Any, *, is_chunked: bool) -> tuple[Manifest, Striking]:
    config = world.config(*(CHUNKED if is_chunked else ()))
    striking = Striking(api.open_executor(config, world.items, api.Placement("auto", 2)), seed, strike)
    manifest = Manifest("0", {"fingerprint": "f"}, ["disc"], [], "d")
    try:
        done = Job(config, RunWriter.create(folder, manifest, ""), striking).execute(world.items, Silent())
    finally:
        striking.close()
    assert striking.has_struck
    return done, striking


def check_worker(world: World, cluster: Any, run: Path, seed: int, *, is_chunked: bool) -> None:
    _, striking = run_struck(world, run, seed, kill_worker, is_chunked=is_chunked)
    assert striking.num_retries <= 1  # 0 where the commit came just before the kill


def check_decode(world: World, cluster: Any, run: Path, seed: int, *, is_chunked: bool) -> None:
    """The worker replaces its decode process; nobody else notices."""
    _, striking = run_struck(world, run, seed, kill_decoder, is_chunked=is_chunked)
    assert striking.num_retries == 0


def check_node(world: World, cluster: Any, run: Path, seed: int, *, is_chunked: bool) -> None:
    """One of the two workers sits on a node that is lost; its units are done on the other."""
    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    blocker = ray.util.placement_group([{"CPU": 2}], strategy="STRICT_PACK")
    ray.get(blocker.ready())  # the head keeps room for one worker only

    def lose_node(executor: Any, event: UnitProgress) -> bool:
        cluster.remove_node(node, allow_graceful=False)
        return True

    try:
        manifest, striking = run_struck(world, run, seed, lose_node, is_chunked=is_chunked)
    finally:
        ray.util.remove_placement_group(blocker)
    assert manifest.counts["done"] == len(world.items)
    assert striking.num_retries <= 1


def check_driver(world: World, cluster: Any, run: Path, seed: int, *, is_chunked: bool) -> None:
    """The driver is killed outright; the same line with --resume does the rest."""
    rng = np.random.default_rng(seed)
    options = ("--ray", cluster.address, "--workers", "2")
    sets = CHUNKED if is_chunked else ()
    process = start_driver(world, run, *options, sets=sets)
    assert wait_for_work(run, process, commits=int(rng.integers(0, 3)))
    time.sleep(rng.uniform(0, 0.8))
    process.kill()
    finish(process)
    kept = {v.video_id for v in open_run(run).videos}
    ages = {v: (run / "masklets" / v).stat().st_mtime_ns for v in kept}
    code, output = finish(start_driver(world, run, *options, "--resume", sets=sets))
    assert code == 0, output
    assert all((run / "masklets" / v).stat().st_mtime_ns == age for v, age in ages.items())  # not done again


CHECKS = {"worker": check_worker, "decode": check_decode, "driver": check_driver, "node": check_node}


def check(world: World, cluster: Any, folder: Path, kind: str, seed: int) -> None:
    is_chunked = seed % 3 == 0
    CHECKS[kind](world, cluster, folder / "run", seed, is_chunked=is_chunked)
    run = open_run(folder / "run")
    assert [v.status for v in run.videos] == ["done"] * len(world.items)
    assert run.table().equals(world.reference(is_chunked=is_chunked))
    assert not (folder / "run" / ".units").exists()


@pytest.mark.parametrize(("kind", "seed"), SAMPLE)
def test_a_run_survives(world: World, cluster: Any, tmp_path: Path, kind: str, seed: int) -> None:
    check(world, cluster, tmp_path, kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), MATRIX)
def test_a_run_survives_any_moment(world: World, cluster: Any, tmp_path: Path, kind: str, seed: int) -> None:
    check(world, cluster, tmp_path, kind, seed)
