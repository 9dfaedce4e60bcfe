"""Benchmarks of several parts: run those that are named, merge what they measured into one JSON file and one table."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Part = Callable[[Path], dict[str, Any]]
"""Measures in an empty folder; what it returns is JSON."""
Row = tuple[str, str, str, str]
"""Part, key of what it measured, in words, what is wanted."""


@dataclass(frozen=True, slots=True)
class Results:
    """Where a benchmark's figures are kept, and how they are shown."""

    folder: Path
    name: str
    """Of the files, and of the module in ``benchmarks``."""
    title: str
    rows: tuple[Row, ...]

    def measure(self, names: Sequence[str], parts: Mapping[str, Part]) -> None:
        """Run parts one after another, print each, and write after each; parts measured earlier stay."""
        path = self.folder / f"{self.name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        for name in names:
            before = os.getloadavg()[0]
            with tempfile.TemporaryDirectory(prefix=f"masklet-{self.name}-") as folder:
                measured = parts[name](Path(folder))
            found[name] = {**measured, "load_average": [round(before, 1), round(os.getloadavg()[0], 1)]}
            print(json.dumps({name: found[name]}), flush=True)
            self.write(found)
        print(self.table(found))

    def write(self, found: dict[str, Any]) -> None:
        """The numbers as JSON, and as a table."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        command = f"`uv run python -m benchmarks.{self.name}`"
        text = f"# {self.title}\n\n{command}\n\n{self.table(found)}\n"
        (self.folder / f"{self.name}.md").write_text(text, encoding="utf-8")

    def table(self, found: dict[str, Any]) -> str:
        """Markdown."""
        lines = ["| part | what | measured | wanted | load average |", "|---|---|---|---|---|"]
        for part, key, what, wanted in self.rows:
            if part in found:
                load = " to ".join(map(str, found[part]["load_average"]))
                lines.append(f"| {part} | {what} | {_shown(found[part].get(key))} | {wanted} | {load} |")
        return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(v)}" for name, v in value.items())
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
