"""Joining or starting a Ray cluster, what a worker reserves on it, and leaving it within a deadline."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.errors import UsageError

LOGGER = logging.getLogger("masklet.ray")

CPUS_PER_WORKER = 2.0
"""One for the worker, one for its decode process."""
SHUTDOWN_S = 20.0
"""Leaving a cluster once took for ever after an actor had been killed in the middle of a stream."""
_STORE_BYTES = 100 << 20
"""Object store of a cluster that we start: embeddings and reports only."""


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connection to a cluster; closing one that was there before does nothing."""

    is_ours: bool

    def close(self) -> None:
        """Leave the cluster, or end it if it was started here. Returns after ``SHUTDOWN_S`` at the latest.

        Ray would try the same once more when this process ends, without a deadline; it is kept from that.
        """
        if not self.is_ours or not ray.is_initialized():
            return
        thread = threading.Thread(target=ray.shutdown, name="masklet-ray-shutdown", daemon=True)
        thread.start()
        thread.join(SHUTDOWN_S)
        if thread.is_alive():
            LOGGER.warning("Ray did not shut down within %g s; its processes are ended without it", SHUTDOWN_S)
            atexit.unregister(ray_worker.shutdown)  # what ends a cluster started here is another hook, and stays


def connect(address: str, *, num_cpus: int | None = None) -> RaySession:
    """Join the cluster at ``address``; ``local`` starts one on loopback, ``auto`` too unless ``RAY_ADDRESS`` is set.

    Raises:
        UsageError: nothing answers at that address.
    """
    if ray.is_initialized():
        return RaySession(is_ours=False)
    target = os.environ.get("RAY_ADDRESS") or "local" if address == "auto" else address
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if target == "local":
        # Ray binds the outward address by default; a cluster for this job alone has no business there.
        options |= {
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "num_cpus": num_cpus,
        }
    try:
        with _kept_signal(signal.SIGTERM):
            ray.init(address=target, **options)
    except Exception as error:  # Ray raises plain ones too, as when a node is slow to start
        raise UsageError("no Ray cluster answers", str(target), " ".join(str(error).split())[:200]) from error
    return RaySession(is_ours=True)


@contextlib.contextmanager
def _kept_signal(number: int) -> Iterator[None]:
    """Ray makes SIGTERM end the driver on the spot; for us it drains like Ctrl-C."""
    handler = signal.getsignal(number)
    yield
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker takes of one node, its decode process included."""

    gpus: float
    cpus: float

    def reserve(self, name: str) -> PlacementGroup:
        """A STRICT_PACK group: a bundle for the worker, and one for its decode process on the same node.

        The decode process is a child of the worker's process, so that nothing is ever sent between nodes; Ray does not
        start it, the second bundle only keeps its CPU free of others.
        """
        worker = {"CPU": self.cpus / 2} | ({"GPU": self.gpus} if self.gpus else {})
        return placement_group([worker, {"CPU": self.cpus / 2}], strategy="STRICT_PACK", name=name)

    def options(self, group: PlacementGroup) -> dict[str, Any]:
        """Options of an actor that lives in the first bundle of such a group."""
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        return {"num_gpus": self.gpus, "num_cpus": self.cpus / 2, "scheduling_strategy": strategy}


def is_placed(group: PlacementGroup) -> bool:
    """Whether the group has its resources now; not while it waits for a node, or for another after losing its own."""
    return bool(placement_group_table(group).get("state") == "CREATED")


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def share_cluster(nodes: Sequence[Mapping[str, float]], gpus: float, workers: int) -> tuple[int, Share]:
    """How many workers to run, and what each reserves.

    Args:
        nodes: resources of each node.
        gpus: per worker; below 1 several share one; 0: on CPUs.
        workers: how many are wanted; 0: one per GPU (share), or one per two CPUs.

    A worker gets two CPUs, or less where that lets more of the wanted ones run. Workers beyond what the cluster holds
    are still asked for: that is what makes an autoscaling cluster grow.
    """
    natural = sum(_room(n, gpus, CPUS_PER_WORKER if not gpus else 0.0) for n in nodes)
    wanted = workers or max(natural, 1)
    shares = {CPUS_PER_WORKER, *(n.get("CPU", 0.0) / k for n in nodes for k in range(1, wanted + 1))}
    fitting = sorted(s for s in shares if 0 < s <= CPUS_PER_WORKER)
    rooms = {share: min(sum(_room(n, gpus, share) for n in nodes), wanted) for share in fitting}
    most = max(rooms.values(), default=0)
    best = max((share for share, room in rooms.items() if room == most), default=CPUS_PER_WORKER)
    return wanted, Share(gpus, math.floor(best / 2 * 1e4) / 1e4 * 2)  # Ray counts ten-thousandths


def _room(node: Mapping[str, float], gpus: float, cpus: float) -> int:
    """How many workers fit on a node."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus + 1e-9) if cpus else math.inf
    if not gpus:
        return int(by_cpu)
    whole = node.get("GPU", 0.0)
    by_gpu = math.floor(whole) * math.floor(1 / gpus + 1e-9) if gpus < 1 else math.floor(whole / gpus + 1e-9)
    return int(min(by_cpu, by_gpu))
