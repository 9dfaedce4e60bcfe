"""Write the tables of the model card from ``figures.json``, between the marks that name them.

python -m models.recipe.evaluate --json models/tiny/figures.json
python -m models.recipe.card                     # then read the card once more
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGED = Path(__file__).parent.parent / "tiny"
Table = Mapping[str, float]
Figures = Mapping[str, Table]

_DETECTION = (  # row of the card, row of figures.json, aim
    ("mask F1, all present phrases", "present F1", "0.92 / 0.87"),
    ('mask F1, colour and shape ("red circle")', "pair F1", ""),
    ("mask F1, colour only", "colour F1", ""),
    ("mask F1, shape only", "shape F1", ""),
    ("mask F1, with a size word", "sized pair F1", ""),
    ("mask F1, anything", "anything F1", ""),
    ("absent: unknown noun", "absent: unknown noun", "0.97"),
    ("absent: colour not there", "absent: colour", "0.97"),
    ("absent: shape not there", "absent: shape", ""),
    ("absent: right colour, wrong shape", "absent: right colour, wrong shape", "0.93"),
    ("absent: right shape, wrong colour", "absent: right shape, wrong colour", "0.93"),
    ("absent: pair never trained", "absent: never trained", "0.88"),
    ("top mask right among same-colour rivals", "top mask right among same-colour rivals", "0.97"),
    ("(chance)", "chance among same-colour rivals", ""),
    ("box exemplar, F1 over the others like it", "exemplar F1", "0.85"),
    ("recall, under 8 % of the frame width", "recall of pairs, extent <8%", ""),
    ("recall, 8-16 %", "recall of pairs, extent 8-16%", ""),
    ("recall, over 16 %", "recall of pairs, extent >16%", ""),
    ("*oracle with perfect masks that ignores shape words, F1*", "oracle that ignores shape words F1", ""),
    ("*oracle that returns everything, F1*", "oracle that returns everything F1", ""),
)
_CLIPS = (  # row of the card, group of figures.json, aim
    ("all", "all clips", "HOTA 0.75, IDF1 0.85"),
    ("crossing, two colours", "crossing", "no switch"),
    ("ten frames out of sight", "occlusion", ""),
    ("look-alikes", "look-alike", "5 HOTA above both"),
    ("look-alikes, copy the last mask", "look-alike, copy the last mask", ""),
)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def detection(figures: Figures) -> str:
    """Rows for trained pairs and for pairs never trained."""
    table = figures["detection"]
    lines = [_row(("", "trained pairs", "pairs never trained", "aim")), _row(("---",) * 4)]
    for title, name, aim in _DETECTION:
        cells = [f"{table[k]:.3f}" if k in table else "" for k in (f"trained | {name}", f"never trained | {name}")]
        lines.append(_row((title, *cells, aim)))
    return "\n".join(lines)


def memory(figures: Figures) -> str:
    """The memory tracker alone, and by frame."""
    table = figures["memory tracker"]
    rows = (
        ("memory tracker", "miou"),
        ("copy the first true mask", "copy_first"),
        ("copy the true mask of the frame before (a baseline that is told the truth)", "copy_last"),
    )
    lines = [_row(("", "mean IoU")), _row(("---",) * 2), *(_row((t, f"{table[k]:.3f}")) for t, k in rows)]
    by_frame = ", ".join(f"{table[f'miou in frame {t}']:.2f}" for t in range(1, 10))
    said = f"Visible or not is right in {table['visible']:.1%} of frames. IoU in frames 1 to 9: {by_frame}."
    return "\n".join([*lines, "", said])


def pipeline(figures: Figures) -> str:
    """The whole pipeline beside box association on the same detections."""
    table = figures["pipeline"]

    def cells(group: str) -> list[str]:
        if f"{group} HOTA" not in table:
            return [""] * 3
        return [
            f"{table[f'{group} HOTA']:.3f}",
            f"{table[f'{group} IDF1']:.3f}",
            f"{table[f'{group} identity switches']:.0f}",
        ]

    boxed = ("box association: HOTA", "IDF1", "switches")
    lines = [_row(("clips", "HOTA", "IDF1", "identity switches", *boxed, "aim")), _row(("---",) * 8)]
    lines += [_row((title, *cells(g), *cells(f"{g}, box association"), aim)) for title, g, aim in _CLIPS]
    kept, rate = table["identity kept after occlusion"], table["frames per second, end to end"]
    said = (
        f"Identity kept after ten frames out of sight: {kept:.0%} (aim 80 %). {rate:.1f} frames/s end to end\n"
        "(decode, detect and track, one phrase and up to three objects; aim 10 on two cores)."
    )
    return "\n".join([*lines, "", said])


def rewrite(text: str, figures: Figures) -> str:
    """The card with every marked table written anew.

    Raises:
        ValueError: a mark is missing.
    """
    for name, write in (("detection", detection), ("memory", memory), ("pipeline", pipeline)):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise ValueError(f"the card has no <!-- {name} --> ... <!-- end -->")
        text = mark.sub(lambda m, write=write: f"{m[1]}{write(figures)}\n{m[2]}", text)  # type: ignore[misc]
    return text


def main() -> None:
    """Rewrite the card of a model folder in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=PACKAGED)
    card = parser.parse_args().model / "README.md"
    figures = json.loads((card.parent / "figures.json").read_text())
    card.write_text(rewrite(card.read_text(), figures))


if __name__ == "__main__":
    main()
