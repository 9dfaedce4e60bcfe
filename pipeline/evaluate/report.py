"""What an evaluation says: scores overall, per video and per phrase, and the difference of two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluate.scoring import Scores
from pipeline.evaluate.sequence import Float64Array

HEADLINES = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDSW", "J&F", "cgF1", "pHOTA", "TETA", "AP")
"""Columns of a table; the report has many more."""
COUNTS = frozenset({"TP", "FN", "FP", "IDSW", "MT", "PT", "ML", "Frag", "IDTP", "IDFN", "IDFP", "objects"})
"""Scores that are whole numbers; the others are 0..1 (MOTA and its like may be negative)."""
LOWER_IS_BETTER = frozenset({"FN", "FP", "IDSW", "ML", "Frag", "IDFN", "IDFP", "J-Decay", "F-Decay", "IL_FPR"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, cells ready to print."""

    level: str
    """``overall``, ``video`` or ``phrase``."""
    name: str
    kind: str
    """``mask`` or ``box``."""
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The scores of one run against ground truth."""

    name: str
    metrics: tuple[str, ...]
    overall: Scores
    videos: Mapping[str, Scores]
    phrases: Mapping[str, Scores]
    pairs: Mapping[str, Mapping[str, Scores]]
    """By video, then phrase."""
    curves: Mapping[str, Mapping[str, Float64Array]] = field(default_factory=dict)
    """By kind: HOTA, DetA, AssA and LocA over the thresholds ``alpha``."""
    notes: tuple[str, ...] = ()
    """What was assumed, left out or counted as missed."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What overlap was measured on."""
        return tuple(self.overall)

    def score(self, name: str, kind: str | None = None) -> float:
        """An overall score, on masks if there are any.

        Raises:
            KeyError: it was not asked for.
        """
        return self.overall[kind or self.kinds[0]][name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; scores that are undefined are ``None``."""
        plain: dict[str, Any] = _plain(
            {
                "run": self.name,
                "metrics": list(self.metrics),
                "overall": self.overall,
                "videos": self.videos,
                "phrases": self.phrases,
                "pairs": self.pairs,
                "curves": {k: {n: v.tolist() for n, v in c.items()} for k, c in self.curves.items()},
                "notes": list(self.notes),
            }
        )
        return plain

    def columns(self) -> tuple[str, ...]:
        """The headline scores there are."""
        return tuple(n for n in HEADLINES if any(n in scores for scores in self.overall.values()))

    def rows(self) -> list[Row]:
        """Lines for a table: overall, then videos and phrases where there is more than one."""
        columns = self.columns()
        groups = [("overall", {"": self.overall}), ("video", self.videos), ("phrase", self.phrases)]
        return [
            Row(level, name, kind, tuple(show(n, scores[kind].get(n)) for n in columns))
            for level, group in groups
            if level == "overall" or len(group) > 1
            for name, scores in group.items()
            for kind in self.kinds
        ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs against the same ground truth."""

    first: EvalReport
    second: EvalReport

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the scores, of both reports."""
        return tuple(dict.fromkeys((*self.first.notes, *self.second.notes)))

    def differences(self) -> dict[str, Any]:
        """Second minus first, in the shape of the reports: overall, per video, per phrase."""
        return {
            "overall": _minus(self.second.overall, self.first.overall),
            "videos": {k: _minus(v, self.first.videos[k]) for k, v in self.second.videos.items()},
            "phrases": {k: _minus(v, self.first.phrases.get(k, {})) for k, v in self.second.phrases.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Both reports and their differences, plain values for JSON."""
        plain: dict[str, Any] = _plain(self.differences())
        return {"runs": [self.first.to_dict(), self.second.to_dict()], "differences": plain}

    def columns(self) -> tuple[str, ...]:
        """The headline scores there are."""
        return self.first.columns()

    def rows(self) -> list[Row]:
        """Lines for a table: each cell ``first -> second (difference)``, worst difference of the first column first."""
        columns = self.columns()
        differences = self.differences()
        out = []
        for level, key in (("overall", ""), ("video", "videos"), ("phrase", "phrases")):
            first = getattr(self.first, key) if key else {"": self.first.overall}
            second = getattr(self.second, key) if key else {"": self.second.overall}
            change = differences[key] if key else {"": differences["overall"]}
            if key and len(second) < 2:
                continue
            for name in _worst_first(second, change, self.first.kinds[0], columns):
                for kind in self.first.kinds:
                    values = (first.get(name, {}).get(kind, {}), second[name][kind], change[name].get(kind, {}))
                    out.append(Row(level, name, kind, tuple(_cell(c, *values) for c in columns)))
        return out


def _worst_first(
    group: Mapping[str, Scores], change: Mapping[str, Scores], kind: str, columns: Sequence[str]
) -> list[str]:
    def key(name: str) -> float:
        value = change[name].get(kind, {}).get(columns[0], 0.0) if columns else 0.0
        return 0.0 if math.isnan(value) else value

    return sorted(group, key=key)


def _cell(column: str, first: Mapping[str, float], second: Mapping[str, float], change: Mapping[str, float]) -> str:
    a, b, d = (side.get(column) for side in (first, second, change))
    sign = "+" if d is not None and d > 0 else ""
    return f"{show(column, a)} -> {show(column, b)} ({sign}{show(column, d)})"


def show(name: str, value: float | None) -> str:
    """A score as people read it: counts whole, the others times 100 with two decimals."""
    if value is None or math.isnan(value):
        return "-"
    return str(round(value)) if name in COUNTS else f"{100 * value:.2f}"


def _minus(second: Scores, first: Scores) -> Scores:
    return {
        kind: {n: v - first[kind][n] for n, v in scores.items() if n in first.get(kind, {})}
        for kind, scores in second.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value
