"""Every test runs offline, seeded and single-threaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # as workers/__init__.py; tests may import Ray first


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real clips and ground truth; tests that need it are skipped without it."""
    folder = os.environ.get("MASKLET_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MASKLET_TEST_DATA names no folder")
    return Path(folder)
