"""The comparison with transformers as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import bench_plot


def write_plot(results: Sequence[dict[str, Any]], out: Path) -> Path:
    """Milliseconds per frame of everyone in every case, by part; behind each bar how many times the reference's."""
    return bench_plot.write_plot(
        [result | {"contestants": _labelled(result["contestants"])} for result in results], out
    )


def _labelled(contestants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: one | {"label": f"{one['wall_ms']:.0f} ms, {one['ratio_wall']:.2f}x"} for name, one in contestants.items()
    }
