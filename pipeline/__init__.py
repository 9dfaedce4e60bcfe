"""masklet: every instance of a phrase in video, followed through time.

>>> from pipeline import track
>>> for frame in track("street.mp4", text=["person", "red car"]):  # doctest: +SKIP
...     print(frame.index, frame.masklet_id, frame.xyxy)

Importing this package loads neither torch nor ray; they load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import track as track
    from pipeline.live.run import stream as stream
    from pipeline.results import FrameResult as FrameResult
    from pipeline.segmentation import segment as segment
    from pipeline.store import Run as Run
    from pipeline.store import open_run as open_run

_WHERE = {
    "FrameResult": "pipeline.results",
    "Run": "pipeline.store",
    "open_run": "pipeline.store",
    "segment": "pipeline.segmentation",
    "stream": "pipeline.live.run",
    "track": "pipeline.api",
}

__all__ = ["FrameResult", "Run", "open_run", "segment", "stream", "track"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
