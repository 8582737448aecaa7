"""Rendered scenes: an endless supply of images whose every answer is known.

A scene is a pure function of its integer seed: coloured shapes and rendered text on a plain,
graded or noisy background, with questions and answers about it. Three tasks::

    vqa      colour, count, position, existence, size: full-sentence answers
    caption  a description of everything in the picture, 40 to 80 words
    read     what is written in it

    >>> sample = scene(7, "read")
    >>> sample.image.size, sample.question, sample.answer     # doctest: +SKIP
    ((192, 192), 'Read the text.', 'It reads "RIVER".')

Scenes depend on the fonts of the machine (``fonts()``): with other fonts the same seed keeps its
text and its questions and changes only its lettering. Pillow's own font is always there.
"""

from __future__ import annotations

import hashlib
import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vispec.training.scene_words import (
    Facts,
    Shape,
    Turn,
    caption_turn,
    question_turns,
    random_text,
    reading_turns,
)

SIZE = 192
"""Side of every scene, pixels."""
TASKS = ("vqa", "caption", "read")
CELL = SIZE // 3
COLOURS = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (35, 80, 210),
    "yellow": (245, 215, 40),
    "orange": (250, 135, 20),
    "purple": (130, 50, 170),
    "pink": (250, 140, 190),
    "brown": (130, 80, 40),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "turquoise": (50, 205, 205),
}
FORMS = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "hexagon")
RADII = {"small": (11, 14), "medium": (18, 22), "large": (26, 30)}
FONT_NAMES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif-Italic",
    "DejaVuSansCondensed",
    "LiberationSans-Regular",
    "LiberationSans-Bold",
    "LiberationSerif-Regular",
    "LiberationSerif-Italic",
    "LiberationMono-Regular",
    "FreeSans",
    "FreeSerif",
    "FreeMonoBold",
    "FreeSerifBold",
    "Lato-Regular",
    "Lato-Bold",
    "Roboto-Regular",
    "Roboto-Bold",
    "OpenSans-Regular",
    "OpenSans-Bold",
    "Hack-Regular",
    "ComicNeue-Regular",
    "ComicNeue-Bold",
    "Cantarell-Regular",
    "Cantarell-Bold",
)


@dataclass(frozen=True)
class Mark:
    """What one rectangle of the image shows.

    Attributes:
        box: (left, top, right, bottom), pixels.
        label: a single character, or a shape's name such as ``"red circle"``.
        rank: a character's place in its line, from 0; a shape's size, from 0 for small.
        line: of a character, from 0; None for a shape.
    """

    box: tuple[float, float, float, float]
    label: str
    rank: int
    line: int | None = None


@dataclass(frozen=True)
class Sample:
    """One image with one question; ``task`` is one of ``TASKS``."""

    image: Image.Image
    question: str
    answer: str
    task: str


@dataclass(frozen=True)
class Dialogue:
    """One image with every question asked of it, and what each part of it shows."""

    image: Image.Image
    turns: tuple[Turn, ...]
    marks: tuple[Mark, ...]
    facts: Facts


def split(seed: int) -> str:
    """``"heldout"`` for one seed in twenty, by a hash of the seed, else ``"train"``."""
    digest = hashlib.sha256(f"scene {seed}".encode()).digest()
    return "heldout" if digest[0] < 13 else "train"


def seeds(part: str, first: int = 0) -> Iterator[int]:
    """All seeds of one part of the split, from ``first`` on; without end."""
    return (seed for seed in itertools.count(first) if split(seed) == part)


def scene(seed: int, task: str | None = None) -> Sample:
    """The scene of a seed with one question of the given task (any task when None)."""
    found = dialogue(seed, task)
    wanted = task or Random(f"task {seed}").choice(sorted({turn.task for turn in found.turns}))
    turns = [turn for turn in found.turns if turn.task == wanted]
    # The first reading question asks for all that is written.
    turn = Random(f"turn {seed}").choice(turns) if wanted == "vqa" else turns[0]
    return Sample(found.image, turn.question, turn.answer, turn.task)


def dialogue(seed: int, task: str | None = None) -> Dialogue:
    """The scene of a seed with all its questions.

    Args:
        seed: any integer; with ``task`` it determines the scene.
        task: what the scene must be able to answer; ``"read"`` means mostly large text, the
            others mean shapes (sometimes with a word). None draws one, reading more often.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    rng = Random(f"scene {seed}")
    drawn = task or rng.choices(TASKS, (3, 2, 5))[0]
    image, shade = _background(rng)
    marks: list[Mark] = []
    shapes: tuple[Shape, ...] = ()
    lines: tuple[str, ...] = ()
    inks = [name for name in COLOURS if _contrast(COLOURS[name], shade.rgb) > 150]
    ink = _ink(shade, inks, rng) if drawn == "read" else rng.choice(inks)
    if drawn == "read":
        lines = random_text(rng)
        marks += _write(image, lines, ink, rng, (6, 6, SIZE - 6, SIZE - 6))
    else:
        word_row = rng.randrange(3) if rng.random() < 0.25 else None
        shapes = _shapes(rng, inks, word_row, fewest=2 if drawn == "caption" else 1)
        for shape in shapes:
            marks.append(_draw(ImageDraw.Draw(image), shape, *_place(shape, rng)))
        if word_row is not None:
            lines = random_text(rng)[:1]
            top = word_row * CELL
            marks += _write(image, lines, ink, rng, (6, top + 6, SIZE - 6, top + CELL - 6))
    facts = Facts(shapes, lines, ink, shade.name)
    turns = reading_turns(facts, rng)
    turns += question_turns(facts, rng, FORMS, tuple(COLOURS))
    turns.append(caption_turn(facts, rng))
    return Dialogue(image, tuple(turns), tuple(marks), facts)


@lru_cache(maxsize=1)
def fonts() -> tuple[str, ...]:
    """Paths of the known fonts found on this machine, sorted by name; may be empty."""
    found: dict[str, str] = {}
    roots = [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        Path("/Library/Fonts"),
        Path("C:/Windows/Fonts"),
        Path.home() / ".fonts",
    ]
    for root in roots:
        for path in root.rglob("*.[to]tf") if root.is_dir() else ():
            found.setdefault(path.stem, str(path))
    return tuple(found[name] for name in FONT_NAMES if name in found)


@lru_cache(maxsize=512)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which rendered text needs")
    return font


@dataclass(frozen=True)
class _Shade:
    name: str
    rgb: tuple[int, int, int]


def _contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _ink(shade: _Shade, colours: list[str], rng: Random) -> str:
    """Mostly black or white, whichever is easier to read, as most of the world's text is."""
    if rng.random() < 0.6:
        return max(("black", "white"), key=lambda name: _contrast(COLOURS[name], shade.rgb))
    return rng.choice(colours)


def _background(rng: Random) -> tuple[Image.Image, _Shade]:
    shades = (
        ("white", (250, 250, 250)),
        ("light grey", (205, 205, 205)),
        ("black", (15, 15, 15)),
        ("dark blue", (20, 25, 80)),
        ("light blue", (185, 215, 245)),
        ("light green", (195, 235, 195)),
        ("cream", (250, 238, 205)),
        ("dark green", (15, 60, 30)),
    )
    colour, rgb = rng.choice(shades)
    style = rng.choices(("plain", "noisy", "graded"), (6, 2, 2))[0]
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = np.full((SIZE, SIZE, 3), rgb, dtype=np.float32)
    if style == "noisy":
        pixels += noise.normal(0, 14, size=(SIZE, SIZE, 1))
    elif style == "graded":
        slope = np.linspace(-30, 30, SIZE, dtype=np.float32)[:, None, None]
        pixels += slope if rng.random() < 0.5 else slope.transpose(1, 0, 2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), _Shade(f"{style} {colour}", rgb)


def _shapes(
    rng: Random, colours: list[str], word_row: int | None, fewest: int
) -> tuple[Shape, ...]:
    """Up to five shapes in different cells, no two with the same colour and form."""
    cells = [(r, c) for r in range(3) for c in range(3) if r != word_row]
    count = max(fewest, rng.choices((1, 2, 3, 4, 5), (1, 3, 4, 3, 2))[0])
    shapes: list[Shape] = []
    for row, column in rng.sample(cells, count):
        form, colour = rng.choice(FORMS), rng.choice(colours)
        while any((form, colour) == (s.form, s.colour) for s in shapes):
            form, colour = rng.choice(FORMS), rng.choice(colours)
        size = rng.choice(tuple(RADII))
        shapes.append(Shape(form, colour, size, row, column, rng.randint(*RADII[size])))
    return tuple(shapes)


def _place(shape: Shape, rng: Random) -> tuple[int, int]:
    """A centre in the shape's cell, pixels."""
    slack = max(0, CELL // 2 - shape.radius - 1)
    x = shape.column * CELL + CELL // 2 + rng.randint(-slack, slack)
    return x, shape.row * CELL + CELL // 2 + rng.randint(-slack, slack)


def _draw(pen: ImageDraw.ImageDraw, shape: Shape, x: int, y: int) -> Mark:
    r, fill = shape.radius, COLOURS[shape.colour]
    box = (x - r, y - r, x + r, y + r)
    if shape.form == "circle":
        pen.ellipse(box, fill=fill)
    elif shape.form == "ring":
        pen.ellipse(box, outline=fill, width=max(3, r // 3))
    elif shape.form == "cross":
        arm = r / 3
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    elif shape.form == "square":
        pen.rectangle(box, fill=fill)
    else:
        pen.polygon([(x + r * u, y + r * v) for u, v in _corners(shape.form)], fill=fill)
    return Mark(box, shape.name, tuple(RADII).index(shape.size))


@lru_cache(maxsize=8)
def _corners(form: str) -> tuple[tuple[float, float], ...]:
    """Corners of a polygon in the unit circle, first one on top."""
    sides = {"triangle": 3, "diamond": 4, "hexagon": 6, "star": 10}[form]
    turns = np.arange(sides) / sides * 2 * np.pi
    radii = np.where(np.arange(sides) % 2 == 1, 0.42, 1.0) if form == "star" else np.ones(sides)
    return tuple(
        zip((np.sin(turns) * radii).tolist(), (-np.cos(turns) * radii).tolist(), strict=True)
    )


def _write(
    image: Image.Image,
    lines: tuple[str, ...],
    ink: str,
    rng: Random,
    box: tuple[int, int, int, int],
) -> list[Mark]:
    """Write lines into a box in the largest size that fits, or somewhat smaller."""
    left, top, right, bottom = box
    path = rng.choice((None, *fonts()))
    height = (bottom - top) / len(lines)
    size = min(int(height * 0.72), rng.randint(34, 64))
    while size > 12 and max(_font(path, size).getlength(line) for line in lines) > right - left:
        size -= 1
    font = _font(path, size)
    pen = ImageDraw.Draw(image)
    ascent, descent = font.getmetrics()
    spare = max(0.0, bottom - top - len(lines) * (ascent + descent))
    y = top + rng.random() * spare
    marks = []
    for number, line in enumerate(lines):
        x = left + rng.random() * max(0.0, right - left - font.getlength(line))
        pen.text((x, y), line, font=font, fill=COLOURS[ink])
        marks += _glyphs(font, line, number, x, y)
        y += ascent + descent
    return marks


def _glyphs(font: ImageFont.FreeTypeFont, line: str, number: int, x: float, y: float) -> list[Mark]:
    """The tight box of every character of the line of that number, drawn at (x, y)."""
    marks = []
    for i, character in enumerate(line):
        if character != " ":
            start = x + font.getlength(line[: i + 1]) - font.getlength(character)
            left, top, right, bottom = font.getbbox(character)
            box = (start + left, y + top, start + right, y + bottom)
            marks.append(Mark(box, character, i, number))
    return marks


def page(seed: int) -> Dialogue:
    """An image crowded with large characters and shapes, and no questions.

    Nearly every patch of it shows something: a vision tower learns letters from a page several
    times faster than from a scene, which is mostly background.
    """
    rng = Random(f"page {seed}")
    image, shade = _background(rng)
    inks = [name for name in COLOURS if _contrast(COLOURS[name], shade.rgb) > 150]
    ink = _ink(shade, inks, rng)
    pen = ImageDraw.Draw(image)
    marks: list[Mark] = []
    top, number = 2.0, 0
    while top < SIZE - 20:
        if top + CELL < SIZE and rng.random() < 0.15:
            for x in range(CELL // 2, SIZE, CELL):
                marks.append(_shape_at(pen, x, int(top) + CELL // 2, rng, inks))
            top += CELL
            continue
        font = _font(rng.choice((None, *fonts())), rng.randint(24, 60))
        letters = rng.choice(
            (string.ascii_uppercase, string.ascii_lowercase, string.digits + string.ascii_letters)
        )
        line = ""
        while font.getlength(line) < SIZE - 4:
            line += rng.choice(letters) if rng.random() < 0.93 else " "
        line = line[:-1]
        ascent, descent = font.getmetrics()
        pen.text((2, top), line, font=font, fill=COLOURS[ink])
        marks += _glyphs(font, line, number, 2, top)
        number += 1
        top += (ascent + descent) * 0.95
    return Dialogue(image, (), tuple(marks), Facts((), (), ink, shade.name))


def _shape_at(pen: ImageDraw.ImageDraw, x: int, y: int, rng: Random, colours: list[str]) -> Mark:
    form, colour, size = rng.choice(FORMS), rng.choice(colours), rng.choice(tuple(RADII))
    shape = Shape(form, colour, size, 0, 0, rng.randint(*RADII[size]))
    return _draw(pen, shape, x, y)
