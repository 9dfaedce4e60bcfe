"""One Ray cluster and one small job for all tests of this folder: starting Ray takes many seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow.worlds import World, make_world


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Clips of a second or two of work each, without a model."""
    return make_world(tmp_path_factory.mktemp("world") / "w")


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """A head with four CPUs, which this process is connected to; nodes can be added."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # workers import the faults of these tests
        yield from _running(ray, Cluster())


def _running(ray: Any, started: Any) -> Iterator[Any]:
    head = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    # Ray gives a node 30 s to start, which a busy machine may exceed.
    for attempt in range(3):
        try:
            started.add_node(**head)
            break
        except Exception:
            if attempt == 2:
                raise
    ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
    yield started
    from benchmarks.distributed import object_store

    spilled_mb = object_store()["spilled_mb"]
    ray.shutdown()
    started.shutdown()
    assert spilled_mb == 0.0, f"{spilled_mb} MB went through the disk: workers exchange too much"
