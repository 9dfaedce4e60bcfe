"""A tracker's state on disk: ``tracker.json`` and, where there are tensors, ``tracker.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import RunError

_NAME = "tracker.json"


def write_state(folder: Path, version: int, state: dict[str, Any]) -> None:
    """Write ``state`` (JSON values; floats read back bit-equal), stamped with ``version``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NAME).write_text(json.dumps({"version": version, **state}))


def read_state(folder: Path, version: int) -> dict[str, Any]:
    """What :func:`write_state` wrote.

    Raises:
        RunError: there is no state, or one of another version.
    """
    try:
        state: dict[str, Any] = json.loads((folder / _NAME).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the tracker's state: {error}", str(folder)) from error
    found = state.get("version") if isinstance(state, dict) else None
    if found != version:
        raise RunError(f"tracker state of version {found}, expected {version}", str(folder))
    return state
