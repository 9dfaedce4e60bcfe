"""One colour per masklet: a function of its id alone, and told apart by colour-blind people too."""

from __future__ import annotations

RGB = tuple[int, int, int]

BASE: tuple[RGB, ...] = (
    (0xE6, 0x9F, 0x00),
    (0x56, 0xB4, 0xE9),
    (0xAA, 0x33, 0x77),
    (0x00, 0x9E, 0x73),
    (0xF0, 0xE4, 0x42),
    (0x00, 0x72, 0xB2),
    (0xD5, 0x5E, 0x00),
    (0xC4, 0xC4, 0xC4),
)
"""Okabe and Ito's set (Color Universal Design, 2008), its reddish purple and black replaced by the purple of Paul Tol's
"bright" scheme and a grey: under protanopia, deuteranopia or tritanopia no pair is closer than 0.08 in OKLab."""

_DARK, _LIGHT = (18, 18, 20), (255, 255, 255)


def colour(masklet_id: int) -> RGB:
    """RGB of a masklet: the eight base colours, then eight lighter and eight darker ones, then around again."""
    turn, place = divmod(masklet_id - 1, len(BASE))
    towards, share = ((_LIGHT, 0.0), (_LIGHT, 0.5), (_DARK, 0.4))[turn % 3]
    r, g, b = (round(c + (t - c) * share) for c, t in zip(BASE[place], towards, strict=True))
    return r, g, b


def ink(background: RGB) -> RGB:
    """Near-black or white, whichever reads better on this colour (the WCAG contrast ratio decides)."""
    luminance = relative_luminance(background)
    return _DARK if (luminance + 0.05) / 0.055 >= 1.05 / (luminance + 0.05) else _LIGHT


def relative_luminance(rgb: RGB) -> float:
    """0 (black) to 1 (white), as WCAG 2 defines it for sRGB."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def hex_colour(rgb: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
