"""What a rendered scene can be asked, and how it is put into words.

A scene's *facts* (which shapes stand where, what is written) become questions and full-sentence
answers here. Every fact has several wordings, drawn from the caller's random generator, so that
the text is varied; nothing here draws pixels.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower middle", "lower right"),
)
_WORD_LIST = """
about above after again air all along also animal answer apple arm ask away baby back bag ball
bank bear beach bed bell best bird black blue board boat body book both bottle box boy bread
bridge bright brown bus cake call camera car card cat chair child church circle city clean clear
clock close cloud coat coffee cold colour come corn cup dance dark day deep desk dinner dog door
down draw dream dress drink drive dry early earth east eat egg eight end evening every eye face
fall family far farm fast father field fire first fish five floor flower fly food foot forest
four free fresh friend front fruit full game garden gate girl glass gold good grass great green
ground group hair half hand happy hard hat head heart heavy help hill home horse hot hotel hour
house ice idea inside island jacket job juice jump keep key kind king kitchen lake lamp land
large last late leaf learn left letter light line lion list little live long look lost love
lunch machine make many map march market milk mind minute mirror money month moon morning mother
mountain mouse mouth move music name near never new next night nine north nose note number ocean
office often old one open orange order over page paint paper park part party path people phone
photo piano picture place plane plant plate play point police pool post power price queen quick
quiet radio rain read ready red rest rice right ring river road rock roof room rose round run
salt sand school sea season second see seven shape sharp ship shirt shoe shop short show sign
silver sister six sky sleep slow small smile snow soft song soup south space spring square
stairs star start station stone stop store storm story street strong sugar summer sun sweet
table tall tea team ten thank thing three ticket tiger time today tower town toy train travel
tree truck two uncle under valley village visit voice wait walk wall warm water way week west
wheel white wild wind window winter wood word work world write yard year yellow young zero
"""
WORDS = tuple(_WORD_LIST.split())


@dataclass(frozen=True)
class Shape:
    """One coloured shape. ``row`` and ``column`` (0..2) name its cell, ``radius`` is in pixels."""

    form: str
    colour: str
    size: str
    row: int
    column: int
    radius: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}"

    @property
    def place(self) -> str:
        return PLACES[self.row][self.column]


@dataclass(frozen=True)
class Facts:
    """All that is true of a scene: its shapes, the lines written on it, and its background."""

    shapes: tuple[Shape, ...]
    lines: tuple[str, ...]
    ink: str
    background: str

    @property
    def written(self) -> str:
        return " ".join(self.lines)


@dataclass(frozen=True)
class Turn:
    """One question about an image with its answer; ``task`` is one of ``scenes.TASKS``."""

    question: str
    answer: str
    task: str


def random_text(rng: Random) -> tuple[str, ...]:
    """Draw what is written on a scene: one to three lines of words, digits or random strings."""
    count = rng.choices((1, 2, 3), (6, 3, 1))[0]
    return tuple(_random_line(rng) for _ in range(count))


def _random_line(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        word = rng.choice(WORDS)
        if len(word) <= 5 and rng.random() < 0.3:
            word += " " + rng.choice([w for w in WORDS if len(w) <= 5])
        return rng.choice((word, word.upper(), word.upper(), word.capitalize()))
    length = min(rng.randint(3, 10), rng.randint(3, 10))
    letters = rng.choice(
        (
            string.ascii_uppercase,
            string.ascii_uppercase + string.digits,
            string.digits,
            string.ascii_lowercase,
        )
    )
    return "".join(rng.choice(letters) for _ in range(length))


def article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def listing(items: list[str]) -> str:
    """Join with commas and a final "and"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def relation(a: Shape, b: Shape) -> str:
    """Where ``a`` lies as seen from ``b``; the larger distance decides, columns first."""
    rows, columns = a.row - b.row, a.column - b.column
    if abs(columns) >= abs(rows):
        return "to the left of" if columns < 0 else "to the right of"
    return "above" if rows < 0 else "below"


OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


def reading_turns(facts: Facts, rng: Random) -> list[Turn]:
    """Questions whose answer is read off the image; empty when nothing is written."""
    if not facts.lines:
        return []
    say = facts.written
    turns = [
        Turn(
            *rng.choice(
                (
                    ("What does the text say?", f'The text says "{say}".'),
                    ("Read the text.", f'It reads "{say}".'),
                    ("What is written in the picture?", f'The picture says "{say}".'),
                    ("Please read what is written here.", f'It says "{say}".'),
                    ("Which text can you see?", f'I can see the text "{say}".'),
                )
            ),
            task="read",
        )
    ]
    letters = say.replace(" ", "")
    turns.append(
        Turn(
            *rng.choice(
                (
                    ("Spell the text.", f"{' '.join(letters)}."),
                    ("Spell it out letter by letter.", f"It is spelled {' '.join(letters)}."),
                    (
                        "Which characters are written here?",
                        f"The characters are {' '.join(letters)}.",
                    ),
                )
            ),
            task="read",
        )
    )
    if len(facts.lines) > 1:
        which = rng.randrange(len(facts.lines))
        ordinal = ("first", "second", "third")[which]
        turns.append(
            Turn(
                f"What does the {ordinal} line say?",
                f'The {ordinal} line says "{facts.lines[which]}".',
                "read",
            )
        )
        turns.append(
            Turn(
                "How many lines of text are there?",
                f"There are {NUMBERS[len(facts.lines)]} lines of text.",
                "vqa",
            )
        )
    turns.append(Turn("What colour is the text?", f"The text is {facts.ink}.", "vqa"))
    return turns


def question_turns(
    facts: Facts, rng: Random, forms: tuple[str, ...], colours: tuple[str, ...]
) -> list[Turn]:
    """Questions about the shapes, each with a full-sentence answer; empty without shapes."""
    if not facts.shapes:
        return []
    shapes = list(facts.shapes)
    turns = [_background(facts, rng), _count(shapes, rng), _existence(shapes, rng, forms, colours)]
    one = rng.choice(shapes)
    turns.append(
        Turn(
            *rng.choice(
                (
                    (
                        f"Where is the {one.name}?",
                        f"The {one.name} is in the {one.place} of the picture.",
                    ),
                    (f"How large is the {one.name}?", f"The {one.name} is {one.size}."),
                    (
                        f"What is in the {one.place}?",
                        f"In the {one.place} there is {article(one.size)} {one.name}.",
                    ),
                )
            ),
            task="vqa",
        )
    )
    one = rng.choice(shapes)
    if sum(s.form == one.form for s in shapes) == 1:
        turns.append(
            Turn(
                rng.choice(
                    (f"What colour is the {one.form}?", f"Which colour does the {one.form} have?")
                ),
                f"The {one.form} is {one.colour}.",
                "vqa",
            )
        )
    else:
        turns.append(
            Turn(
                f"What colour is the {one.form} in the {one.place}?",
                f"The {one.form} in the {one.place} is {one.colour}.",
                "vqa",
            )
        )
    one = rng.choice(shapes)
    if sum(s.colour == one.colour for s in shapes) == 1:
        turns.append(
            Turn(
                f"What shape is the {one.colour} object?",
                f"The {one.colour} object is {article(one.form)}.",
                "vqa",
            )
        )
    if len(shapes) > 1:
        a, b = rng.sample(shapes, 2)
        truth = relation(a, b)
        asked = truth if rng.random() < 0.5 else OPPOSITE[truth]
        head = "Yes" if asked == truth else "No"
        turns.append(
            Turn(
                f"Is the {a.name} {asked} the {b.name}?",
                f"{head}, the {a.name} is {truth} the {b.name}.",
                "vqa",
            )
        )
        turns.append(
            Turn(
                f"Where is the {b.name} compared with the {a.name}?",
                f"The {b.name} is {relation(b, a)} the {a.name}.",
                "vqa",
            )
        )
        by_size = sorted(shapes, key=lambda s: s.radius)
        if by_size[-1].size != by_size[-2].size:
            turns.append(
                Turn(
                    rng.choice(("Which shape is the largest?", "What is the biggest object?")),
                    f"The largest shape is the {by_size[-1].name}.",
                    "vqa",
                )
            )
        if by_size[0].size != by_size[1].size:
            turns.append(
                Turn(
                    "Which shape is the smallest?",
                    f"The smallest shape is the {by_size[0].name}.",
                    "vqa",
                )
            )
    return turns


def _background(facts: Facts, rng: Random) -> Turn:
    return Turn(
        *rng.choice(
            (
                ("What is the background like?", f"The background is {facts.background}."),
                ("Describe the background.", f"It is {article(facts.background)} background."),
            )
        ),
        task="vqa",
    )


def _count(shapes: list[Shape], rng: Random) -> Turn:
    if rng.random() < 0.5:
        return _counted(len(shapes), "shape", rng)
    one = rng.choice(shapes)
    if rng.random() < 0.5:
        return _counted(sum(s.form == one.form for s in shapes), one.form, rng)
    return _counted(sum(s.colour == one.colour for s in shapes), f"{one.colour} shape", rng)


def _counted(count: int, noun: str, rng: Random) -> Turn:
    plural = noun + ("es" if noun.endswith("s") else "s")
    verb, noun_form = ("is", noun) if count == 1 else ("are", plural)
    return Turn(
        *rng.choice(
            (
                (f"How many {plural} are there?", f"There {verb} {NUMBERS[count]} {noun_form}."),
                (f"Count the {plural}.", f"I can count {NUMBERS[count]} {noun_form}."),
            )
        ),
        task="vqa",
    )


def _existence(
    shapes: list[Shape], rng: Random, forms: tuple[str, ...], colours: tuple[str, ...]
) -> Turn:
    if rng.random() < 0.5:
        name = rng.choice(shapes).name
        return Turn(f"Is there {article(name)}?", f"Yes, there is {article(name)}.", "vqa")
    present = {s.name for s in shapes}
    absent = [f"{c} {f}" for c in colours for f in forms if f"{c} {f}" not in present]
    name = rng.choice(absent)
    return Turn(f"Is there {article(name)}?", f"No, there is no {name} in the picture.", "vqa")


def caption_turn(facts: Facts, rng: Random) -> Turn:
    """A long description (about 40 to 80 words) of everything in the scene, row by row."""
    question = rng.choice(
        (
            "Describe the picture in detail.",
            "Describe everything you see.",
            "Give a detailed description of the image.",
            "Tell me all about this picture.",
        )
    )
    parts = []
    shapes = sorted(facts.shapes, key=lambda s: (s.row, s.column))
    if shapes:
        noun = "shape" if len(shapes) == 1 else "shapes"
        parts.append(
            rng.choice(("The picture shows", "This image contains", "I can see"))
            + f" {NUMBERS[len(shapes)]} {noun} on {article(facts.background)} background."
        )
    else:
        parts.append(
            rng.choice(("The picture shows some text", "There is text"))
            + f" on {article(facts.background)} background."
        )
    for s in shapes:
        parts.append(
            rng.choice(
                (
                    f"In the {s.place} there is {article(s.size)} {s.name}.",
                    f"There is {article(s.size)} {s.name} in the {s.place}.",
                    f"{article(s.size).capitalize()} {s.name} is placed in the {s.place}.",
                )
            )
        )
    for a, b in zip(shapes[1:], shapes, strict=False):
        if len(shapes) <= 3:
            parts.append(f"The {a.name} is {relation(a, b)} the {b.name}.")
    if facts.lines:
        subject = rng.choice(("The text", "The writing"))
        parts.append(f'{subject} is {facts.ink} and says "{facts.written}".')
        noun = "line" if len(facts.lines) == 1 else "lines"
        parts.append(f"It has {NUMBERS[len(facts.lines)]} {noun}.")
    if shapes:
        by_size = sorted(shapes, key=lambda s: s.radius)
        if len(shapes) > 1 and by_size[-1].size != by_size[-2].size:
            parts.append(f"The largest shape is the {by_size[-1].name}.")
        for colour in dict.fromkeys(s.colour for s in shapes):
            named = [s.form for s in shapes if s.colour == colour]
            if len(named) > 1:
                parts.append(
                    f"The {listing(named)} are both {colour}."
                    if len(named) == 2
                    else f"The {listing(named)} are all {colour}."
                )
    if not facts.lines and shapes:
        parts.append(rng.choice(("There is no text in the picture.", "Nothing is written on it.")))
    return Turn(question, " ".join(parts), "caption")
