"""Draws the pictures of the concepts: `python docs/concepts/drawings.py` writes them beside itself.

Each is on a ground of its own, so that it can be read on light and on dark pages. The curves are of
the formulas that stand below them, with the figures that the picture names.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

GROUND, INK, SOFT, LINE = "#fbfaf6", "#1d2530", "#5b6673", "#c9c6bb"
GREEN, BLUE, RED = "#0b6e4f", "#2457a6", "#b3402a"
# Names in pictures are in English; the rest is shapes.
FONT = 'font-family="system-ui, sans-serif" font-size="14"'


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a picture; `title` says what it shows to those who do not see it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    marker = (
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
        f' orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>'
    )
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>'
    return "\n".join([f"{head} {FONT}>", f"<title>{title}</title>", marker, ground, *parts, "</svg>", ""])


def text(x: float, y: float, what: str, colour: str = INK, *, anchor: str = "start", size: int = 14) -> str:
    """Return a line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{what}</text>'
    )


def box(at: tuple[float, float], size: tuple[float, float], lines: Sequence[str], colour: str = BLUE) -> str:
    """Return a box with lines of text, the first of them its name."""
    (x, y), (width, height) = at, size
    middle, top = x + width / 2, y + height / 2 + 5 - 9 * (len(lines) - 1)
    said = [
        text(
            middle,
            top + 18 * row,
            line,
            INK if row == 0 else SOFT,
            anchor="middle",
            size=14 if row == 0 else 12,
        )
        for row, line in enumerate(lines)
    ]
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"'
    frame += f' fill="#ffffff" stroke="{colour}"/>'
    return frame + "".join(said)


def arrow(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    """Return an arrow to the second point."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{SOFT}" fill="none" marker-end="url(#tip)"{dash}/>'
    )


def posterior_of(ratings: Sequence[float], prior: float, spread: float, noise: float) -> tuple[float, float]:
    """Return mean and deviation of what is believed after `ratings`, of a normal prior and noise."""
    precision = 1 / spread**2 + len(ratings) / noise**2
    mean = (prior / spread**2 + sum(ratings) / noise**2) / precision
    return mean, 1 / math.sqrt(precision)


def posterior() -> str:
    """Return beliefs about one user's taste, narrower with each rating."""
    prior, spread, noise = 3.6, 0.8, 1.0
    left, bottom, width = 60.0, 250.0, 560.0
    parts = [f'<path d="M{left:g} {bottom:g}h{width:g}" stroke="{LINE}"/>']
    parts += [
        text(left + width * (at - 1) / 4, bottom + 20, str(at), SOFT, anchor="middle") for at in range(1, 6)
    ]
    for ratings, colour, name in (
        ((), SOFT, "no rating: the prior"),
        ((5.0,), BLUE, "one rating of 5"),
        ((5.0, 4.0, 5.0, 4.0, 5.0, 4.0, 5.0, 5.0), GREEN, "eight ratings, 4.6 on average"),
    ):
        mean, deviation = posterior_of(ratings, prior, spread, noise)
        points = []
        for step in range(141):
            at = 1 + 4 * step / 140
            density = math.exp(-(((at - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
            points.append(f"{left + width * step / 140:.1f} {bottom - 165 * density:.1f}")
        parts.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = 34 + 22 * (("no", "one", "eig").index(name[:3].strip()))
        parts.append(f'<path d="M70 {row - 5}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(102, row, f"{name}: {mean:.2f} &#177; {deviation:.2f}"))
    parts.append(text(left + width, bottom + 40, "what the user would give, on average", SOFT, anchor="end"))
    return svg(680, 310, "What is believed of a user, narrower with each rating", parts)


def fold_in() -> str:
    """Return how a user's row is made from a history and the item table."""
    rows = [("dune", 5), ("emma", 2), ("ubik", 4)]
    parts = [
        text(40, 36, "history of ann"),
        text(255, 36, "item table of generation 42"),
        text(560, 36, "row of ann"),
    ]
    for number, (item, rating) in enumerate(rows):
        y = 56 + 62 * number
        parts.append(box((40, y), (120, 46), (item, f"rated {rating}"), GREEN))
        parts.append(box((260, y), (170, 46), (f"q of {item}", "mean, covariance, bias")))
        parts += [arrow(160, y + 23, 257, y + 23), arrow(430, y + 23, 553, 141)]
    parts.append(box((556, 110), (190, 62), ("posterior of p", "mean, covariance"), RED))
    parts.append(text(556, 200, "no other user is looked at,", SOFT, size=12))
    parts.append(text(556, 217, "and no item is changed", SOFT, size=12))
    return svg(780, 260, "A history and the item table give the row of a user", parts)


def generation() -> str:
    """Return two generations beside each other, and the pointer that is flipped."""
    parts = [
        box(
            (40, 40),
            (250, 130),
            ("generation 41", "item table, user records", "prior, noise, metrics", "kept: the way back"),
        ),
        box(
            (330, 40),
            (250, 130),
            ("generation 42", "item table, user records", "prior, noise, metrics", "checked, then live"),
            GREEN,
        ),
        box((620, 40), (120, 130), ("generation 43", "being written"), SOFT),
        box((330, 220), (250, 50), ("live pointer: 42",), RED),
        arrow(455, 220, 455, 174),
        arrow(380, 220, 200, 174, dashed=True),
        text(190, 215, "going back is", SOFT, anchor="middle", size=12),
        text(190, 232, "one flip, too", SOFT, anchor="middle", size=12),
    ]
    return svg(780, 300, "Generations side by side, one of them live", parts)


def counter_rule() -> str:
    """Return when a record is current, and what a reader does where it is not."""
    parts = [
        box((40, 40), (200, 62), ("user ann", "n = 7 rating events"), GREEN),
        box((40, 140), (200, 62), ("record in generation 42", "has seen n = 7")),
        arrow(240, 71, 337, 110),
        arrow(240, 171, 337, 132),
        box((340, 90), (130, 62), ("equal?", "one HMGET"), SOFT),
        arrow(470, 108, 567, 71),
        text(512, 76, "yes", GREEN, anchor="middle"),
        box((570, 40), (190, 62), ("answer from it",), GREEN),
        arrow(470, 134, 567, 171),
        text(512, 180, "no", RED, anchor="middle"),
        box(
            (570, 140),
            (190, 80),
            ("fold the history in,", "answer from that,", "write it back unless", "a newer one is there"),
            RED,
        ),
    ]
    return svg(800, 250, "The counter rule", parts)


DRAWINGS = {
    "posterior": posterior,
    "fold-in": fold_in,
    "generation": generation,
    "counter-rule": counter_rule,
}


def main() -> None:
    """Write all of them."""
    for name, draw in DRAWINGS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
