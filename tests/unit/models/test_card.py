"""The model card's tables are those of figures.json, and rewriting touches nothing else."""

import json
from pathlib import Path

import pytest

from models.recipe.card import rewrite

FOLDER = Path(__file__).parents[3] / "models" / "tiny"
FIGURES = json.loads((FOLDER / "figures.json").read_text())


def test_the_shipped_card_says_what_figures_json_says() -> None:
    card = (FOLDER / "README.md").read_text()
    assert rewrite(card, FIGURES) == card


def test_a_changed_figure_changes_its_row_and_no_other_line() -> None:
    card = (FOLDER / "README.md").read_text()
    changed = json.loads(json.dumps(FIGURES))
    changed["detection"]["trained | exemplar F1"] = 0.123
    before, after = card.splitlines(), rewrite(card, changed).splitlines()
    different = [b for a, b in zip(before, after, strict=True) if a != b]
    assert len(different) == 1
    assert different[0].startswith("| box exemplar") and "0.123" in different[0]


def test_a_card_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- detection -->"):
        rewrite("# a card", FIGURES)
