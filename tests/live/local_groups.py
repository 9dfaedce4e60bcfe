"""Groups of cameras as :class:`workers.ray_cameras.RayGroups` has them, but in threads of the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.live.group import CameraGroup, GroupSpec
from workers.ray_cameras import Heard


class LocalGroups:
    """Starts a group when it is first asked, as actors do; :meth:`kill` drops it without a word."""

    def __init__(self) -> None:
        self.specs: list[GroupSpec] = []
        self.groups: list[CameraGroup | None] = []
        self._is_new: list[bool] = []
        self._deaths: list[Heard] = []

    def open(self, specs: Sequence[GroupSpec]) -> None:
        self.specs, self.groups, self._is_new = list(specs), [None] * len(specs), [True] * len(specs)

    def poll(self, safe: Mapping[int, int], timeout_s: float) -> list[Heard]:
        out, self._deaths = self._deaths, []
        for number, group in enumerate(self.groups):
            if group is None:
                group = self.groups[number] = CameraGroup(self.specs[number])
            out.append(Heard(number, group.take(safe.get(number, 0)), is_new=self._is_new[number]))
            self._is_new[number] = False
        return out

    def kill(self, number: int) -> None:
        """End a group as a kill would: nothing is handed out or saved any more."""
        group = self.groups[number]
        assert group is not None
        group._service._deliver = lambda outputs: None  # type: ignore[method-assign]
        group._service.close = lambda **_: None  # type: ignore[method-assign]
        group.finish(True)
        group._thread.join(20)
        for source in group._service.sources.values():
            source.stop()
        self.groups[number], self._is_new[number] = None, True
        self._deaths.append(Heard(number, None, what="killed"))

    def do(self, number: int, name: str, *arguments: Any) -> Any:
        group = self.groups[number]
        assert group is not None
        return getattr(group, name)(*arguments)

    def respec(self, number: int, spec: GroupSpec) -> None:
        self.specs[number] = spec

    def close(self) -> None:
        self.groups.clear()
