"""Leaving a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.distributed import read_summary

pytest.importorskip("ray")

ROOT = Path(__file__).parents[3]
HANGS = """
import time
from unittest import mock
import ray
from ray._private import worker
from workers import ray_session

ray_session.SHUTDOWN_S = 0.1
worker.disconnect = lambda *_: time.sleep(3600)
ray.is_initialized = lambda: True
ray_session.RaySession(is_ours=True).close()
print("closed")
"""


def test_a_shutdown_that_hangs_does_not_keep_the_process() -> None:
    """Neither at the close nor at the end of the process, where Ray shuts down once more."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", HANGS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "closed\n"


def test_a_summary_of_the_object_store_is_never_misread() -> None:
    plasma = "Plasma memory usage 3 MiB, 2 objects, 1.0% full, 0.0% needed\n"
    assert read_summary(plasma) == {"in_store_mb": 3.0, "spilled_mb": 0.0}
    spilled = plasma + "Spilled 12 MiB, 2 objects, avg write throughput 5 MiB/s\n"
    assert read_summary(spilled)["spilled_mb"] == 12.0
    for reworded in ("Memory: 3 MiB\n", plasma + "To disk (spilling): 12 MiB\n"):
        with pytest.raises(ValueError, match="in another way"):
            read_summary(reworded)
