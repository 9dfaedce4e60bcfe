"""Where things are and will be while only a part of them is seen, or more than they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from trackers.trajectory import Trajectories

ROW = np.zeros(1, np.int64)


def _at(x1: float, x2: float) -> Any:
    return np.array([[x1, 40.0, x2, 60.0]])


def _area(box: Any) -> Any:
    return (box[:, 2] - box[:, 0]) * 20


def _begin(box: Any) -> Trajectories:
    return Trajectories.begin(box, _area(box), ROW.copy())


def _see(path: Trajectories, box: Any, *, plain: bool = True, doubt: float = 0.0) -> None:
    path.predict()
    path.see(ROW, box, _area(box), np.array([plain]), np.array([doubt]))


def _going(speed: float) -> Trajectories:
    path = _begin(_at(0, 20))
    for step in range(1, 21):
        _see(path, _at(speed * step, speed * step + 20))
    return path


def test_a_box_that_runs_over_to_one_side_moves_nothing() -> None:
    path = _going(0)
    _see(path, _at(-12, 20))  # its middle is six pixels off

    assert abs(path.centre[0, 0] - 10) < 0.2
    assert abs(path.mean[0, 4]) < 0.05


def test_a_box_that_moves_as_a_whole_is_believed() -> None:
    path = _going(0)
    _see(path, _at(6, 26))

    assert path.centre[0, 0] > 13


def test_what_is_detected_with_others_goes_on_as_it_went() -> None:
    path = _going(2)  # its middle is at 50
    for _ in range(3):
        _see(path, _at(40, 60), plain=False, doubt=1.0)

    assert path.centre[0, 0] > 55


def test_seeing_nothing_changes_nothing() -> None:
    path = _going(2)
    before = {name: column.copy() for name, column in path.columns().items()}

    path.see(ROW[:0], np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool), np.zeros(0))

    assert all((column == before[name]).all() for name, column in path.columns().items())


def test_the_area_is_that_without_neighbours_but_real_growth_is_believed_in_the_end() -> None:
    path = _begin(_at(0, 20))
    _see(path, _at(0, 30), plain=False)
    soon = path.area[0]
    for _ in range(60):
        _see(path, _at(0, 30), plain=False)

    assert soon < 1.02 * 400
    assert path.area[0] > 0.85 * 600
