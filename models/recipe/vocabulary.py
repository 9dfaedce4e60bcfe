"""The words the tiny model knows, what they mean, and how a query is worded as people type it."""

from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "cup")
N_COLOURS, N_SHAPES = len(COLOURS), len(SHAPES)
ANY = -1

# The first word of each row is the canonical one; plurals are derived by `plural`.
COLOUR_WORDS = (
    ("red", "crimson"),
    ("orange",),
    ("yellow",),
    ("green",),
    ("cyan", "turquoise"),
    ("blue",),
    ("purple", "violet"),
    ("white",),
)
SHAPE_WORDS = (
    ("circle", "ball", "disc", "disk", "sphere", "dot"),
    ("square", "box", "block", "cube"),
    ("triangle",),
    ("star",),
    ("cross", "plus"),
    ("ring", "hoop", "donut"),
    ("heart",),
    ("cup", "mug"),
)
ANY_WORDS = ("object", "thing", "shape", "item")
SMALL_WORDS, BIG_WORDS = ("small", "little", "tiny"), ("big", "large")
FILLERS = ("a", "an", "the", "any", "every", "all")
EXEMPLAR_TEXT = "visual"  # what SAM3's processor types when only a box is given
UNKNOWN_NOUNS = (
    "dog",
    "car",
    "person",
    "tree",
    "zebra",
    "laptop",
    "bottle",
    "chair",
    "cat",
    "bird",
    "bicycle",
    "banana",
)

# Colour-shape pairs that no training scene shows and no training phrase names: the compositional hold-out.
HELD_OUT = frozenset(
    (COLOURS.index(c), SHAPES.index(s))
    for c, s in (
        ("red", "star"),
        ("orange", "ring"),
        ("yellow", "cross"),
        ("green", "circle"),
        ("cyan", "triangle"),
        ("blue", "square"),
        ("purple", "circle"),
        ("white", "triangle"),
        ("blue", "heart"),
        ("green", "cup"),
    )
)

SMALL_BELOW, BIG_ABOVE = 0.13, 0.25  # extent over frame width; between the two no size word is right or wrong


@dataclass(frozen=True)
class Query:
    """What a phrase asks for: indices into COLOURS and SHAPES, or ANY; size -1 small, 0 any, 1 big."""

    colour: int = ANY
    shape: int = ANY
    size: int = 0
    unknown: bool = False

    def matches(self, colour: int, shape: int, extent: float) -> bool:
        """Whether a thing of this colour, shape and extent (fraction of the frame width) is asked for."""
        if self.unknown or (self.colour not in (ANY, colour)) or (self.shape not in (ANY, shape)):
            return False
        return self.size == 0 or (extent < SMALL_BELOW if self.size < 0 else extent > BIG_ABOVE)

    @property
    def held_out(self) -> bool:
        """Whether this names a colour-shape pair that training never shows."""
        return (self.colour, self.shape) in HELD_OUT


def plural(noun: str) -> str:
    """`noun` in the plural: boxes, crosses, circles."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def word_table() -> dict[str, str]:
    """Every known word -> its canonical word (itself for canonical ones); new words are warm-started from it."""
    table: dict[str, str] = {w: row[0] for row in COLOUR_WORDS for w in row}
    for row in (*SHAPE_WORDS, ANY_WORDS):
        for word in row:
            table[word] = row[0]
            table[plural(word)] = plural(row[0])
    table |= dict.fromkeys(SMALL_WORDS, SMALL_WORDS[0]) | dict.fromkeys(BIG_WORDS, BIG_WORDS[0])
    table |= {w: "the" if w not in ("a", "any") else w for w in FILLERS}
    return table | {EXEMPLAR_TEXT: "object"}


def words() -> list[str]:
    """All known words in a fixed order."""
    return list(word_table())


def _pick(rng: np.random.Generator, options: tuple[str, ...], canonical: float) -> str:
    """The canonical first option with probability `canonical`, else any of them."""
    return options[0] if rng.random() < canonical else str(rng.choice(list(options)))


def phrase(rng: np.random.Generator, query: Query) -> str:
    """Words a person might type for `query`: "red circle", "the small blue stars", "Boxes"."""
    if query.unknown:
        noun = _pick(rng, UNKNOWN_NOUNS, 0.0)
    else:
        noun = _pick(rng, SHAPE_WORDS[query.shape] if query.shape != ANY else ANY_WORDS, 0.6)
    if rng.random() < 0.2:
        noun = plural(noun)
    parts = [noun]
    if query.colour != ANY:
        parts.insert(0, _pick(rng, COLOUR_WORDS[query.colour], 0.85))
    if query.size:
        parts.insert(0, _pick(rng, SMALL_WORDS if query.size < 0 else BIG_WORDS, 0.6))
    if rng.random() < 0.15:
        parts.insert(0, str(rng.choice(list(FILLERS))))
    text = " ".join(parts)
    return text.upper() if rng.random() < 0.03 else text
