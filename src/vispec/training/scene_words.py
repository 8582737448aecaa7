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


BRIEF = ("Answer briefly.", "Answer in one sentence.", "Keep it short.")
"""Appended to a question that wants its bare answer; other answers say a little more."""


def reading_turns(facts: Facts, rng: Random) -> list[Turn]:
    """Questions whose answer is read off the image; empty when nothing is written."""
    if not facts.lines:
        return []
    say, count = facts.written, NUMBERS[len(facts.lines)]
    lines = "line" if len(facts.lines) == 1 else "lines"
    about = (
        f"The text is {facts.ink}, on {article(facts.background)} background.",
        f"It is written in {facts.ink} on {article(facts.background)} background.",
        f"The picture has {count} {lines} of text, in {facts.ink}.",
        f"The letters are {facts.ink} and stand in {count} {lines}.",
    )
    turns = [
        _turn(
            rng,
            *rng.choice(
                (
                    ("What does the text say?", f'The text says "{say}".'),
                    ("Read the text.", f'It reads "{say}".'),
                    ("What is written in the picture?", f'The picture says "{say}".'),
                    ("Please read what is written here.", f'It says "{say}".'),
                    ("Which text can you see?", f'I can see the text "{say}".'),
                )
            ),
            about,
            "read",
        )
    ]
    if len(facts.lines) > 1:
        which = rng.randrange(len(facts.lines))
        ordinal = ("first", "second", "third")[which]
        turns.append(
            _turn(
                rng,
                f"What does the {ordinal} line say?",
                f'The {ordinal} line says "{facts.lines[which]}".',
                (f"There are {count} lines in all.", f"All {count} lines are {facts.ink}."),
                "read",
            )
        )
        turns.append(
            _turn(
                rng,
                "How many lines of text are there?",
                f"There are {count} lines of text.",
                tuple(
                    f'The {o} one says "{line}".'
                    for o, line in (("first", facts.lines[0]), ("last", facts.lines[-1]))
                ),
                "vqa",
            )
        )
    turns.append(
        _turn(rng, "What colour is the text?", f"The text is {facts.ink}.", (f'It says "{say}".',))
    )
    return turns


def question_turns(
    facts: Facts, rng: Random, forms: tuple[str, ...], colours: tuple[str, ...]
) -> list[Turn]:
    """Questions about the shapes, each with a full-sentence answer; empty without shapes.

    The first sentence of every answer is determined by the question and the scene.
    """
    if not facts.shapes:
        return []
    shapes = list(facts.shapes)
    turns = [_background(facts, rng), _count(shapes, rng), _existence(shapes, rng, forms, colours)]
    one = rng.choice(shapes)
    beside = [f"It is {relation(one, s)} the {s.name}." for s in shapes if s != one]
    turns.append(
        _turn(
            rng,
            *rng.choice(
                (
                    (
                        f"Where is the {one.name}?",
                        f"The {one.name} is in the {one.place} of the picture.",
                        (f"It is {one.size}.", *beside),
                    ),
                    (
                        f"How large is the {one.name}?",
                        f"The {one.name} is {one.size}.",
                        (f"It is in the {one.place} of the picture.", *beside),
                    ),
                    (
                        f"What is in the {one.place}?",
                        f"In the {one.place} there is {article(one.size)} {one.name}.",
                        (_in_all(shapes), *beside),
                    ),
                )
            ),
        )
    )
    one = rng.choice(shapes)
    if sum(s.form == one.form for s in shapes) == 1:
        turns.append(
            _turn(
                rng,
                rng.choice(
                    (f"What colour is the {one.form}?", f"Which colour does the {one.form} have?")
                ),
                f"The {one.form} is {one.colour}.",
                _where(one),
            )
        )
    else:
        turns.append(
            _turn(
                rng,
                f"What colour is the {one.form} in the {one.place}?",
                f"The {one.form} in the {one.place} is {one.colour}.",
                (f"It is {one.size}.", _in_all(shapes)),
            )
        )
    one = rng.choice(shapes)
    if sum(s.colour == one.colour for s in shapes) == 1:
        turns.append(
            _turn(
                rng,
                f"What shape is the {one.colour} object?",
                f"The {one.colour} object is {article(one.form)}.",
                _where(one),
            )
        )
    if len(shapes) > 1:
        a, b = rng.sample(shapes, 2)
        truth = relation(a, b)
        asked = truth if rng.random() < 0.5 else OPPOSITE[truth]
        head = "Yes" if asked == truth else "No"
        both = (
            f"The {a.name} is in the {a.place}, and the {b.name} is in the {b.place}.",
            f"One is in the {a.place}, the other is in the {b.place}.",
        )
        turns.append(
            _turn(
                rng,
                f"Is the {a.name} {asked} the {b.name}?",
                f"{head}, the {a.name} is {truth} the {b.name}.",
                both,
            )
        )
        turns.append(
            _turn(
                rng,
                f"Where is the {b.name} compared with the {a.name}?",
                f"The {b.name} is {relation(b, a)} the {a.name}.",
                (f"The {b.name} is in the {b.place}, and the {a.name} is in the {a.place}.",),
            )
        )
        by_size = sorted(shapes, key=lambda s: s.radius)
        if by_size[-1].size != by_size[-2].size:
            turns.append(
                _turn(
                    rng,
                    rng.choice(("Which shape is the largest?", "What is the biggest object?")),
                    f"The largest shape is the {by_size[-1].name}.",
                    (f"It is in the {by_size[-1].place} of the picture.", _in_all(shapes)),
                )
            )
        if by_size[0].size != by_size[1].size:
            turns.append(
                _turn(
                    rng,
                    "Which shape is the smallest?",
                    f"The smallest shape is the {by_size[0].name}.",
                    (f"It is in the {by_size[0].place} of the picture.", _in_all(shapes)),
                )
            )
    return turns


def _turn(
    rng: Random, question: str, answer: str, more: tuple[str, ...], task: str = "vqa"
) -> Turn:
    """Three times in four the answer goes on with one of ``more``; else the question is brief."""
    if more and rng.random() < 0.75:
        return Turn(question, f"{answer} {rng.choice(more)}", task)
    return Turn(f"{question} {rng.choice(BRIEF)}", answer, task)


def _where(one: Shape) -> tuple[str, ...]:
    return (
        f"It is {one.size} and lies in the {one.place} of the picture.",
        f"It is {article(one.size)} {one.form} in the {one.place}.",
        f"You can see it in the {one.place}, and it is {one.size}.",
    )


def _in_all(shapes: list[Shape]) -> str:
    names = listing([article(s.name) for s in _in_rows(shapes)])
    return f"The picture shows {names}."


def _in_rows(shapes: list[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda s: (s.row, s.column))


def _background(facts: Facts, rng: Random) -> Turn:
    count = len(facts.shapes)
    verb, noun = ("is", "shape") if count == 1 else ("are", "shapes")
    return _turn(
        rng,
        *rng.choice(
            (
                ("What is the background like?", f"The background is {facts.background}."),
                ("Describe the background.", f"It is {article(facts.background)} background."),
            )
        ),
        (f"On it there {verb} {NUMBERS[count]} {noun}.", _in_all(list(facts.shapes))),
    )


def _count(shapes: list[Shape], rng: Random) -> Turn:
    if rng.random() < 0.5:
        return _counted(shapes, shapes, "shape", rng)
    one = rng.choice(shapes)
    if rng.random() < 0.5:
        return _counted([s for s in shapes if s.form == one.form], shapes, one.form, rng)
    same = [s for s in shapes if s.colour == one.colour]
    return _counted(same, shapes, f"{one.colour} shape", rng)


def _counted(meant: list[Shape], shapes: list[Shape], noun: str, rng: Random) -> Turn:
    plural = noun + ("es" if noun.endswith("s") else "s")
    verb, noun_form = ("is", noun) if len(meant) == 1 else ("are", plural)
    number = NUMBERS[len(meant)]
    each = listing([f"{article(s.name)} in the {s.place}" for s in _in_rows(meant)])
    question, answer = rng.choice(
        (
            (f"How many {plural} are there?", f"There {verb} {number} {noun_form}."),
            (f"Count the {plural}.", f"I can count {number} {noun_form}."),
        )
    )
    return _turn(rng, question, answer, (f"I can see {each}.",) if len(meant) < 4 else ())


def _existence(
    shapes: list[Shape], rng: Random, forms: tuple[str, ...], colours: tuple[str, ...]
) -> Turn:
    if rng.random() < 0.5:
        one = rng.choice(shapes)
        name = article(one.name)
        return _turn(rng, f"Is there {name}?", f"Yes, there is {name}.", _where(one))
    present = {s.name for s in shapes}
    absent = [f"{c} {f}" for c in colours for f in forms if f"{c} {f}" not in present]
    name = rng.choice(absent)
    return _turn(
        rng,
        f"Is there {article(name)}?",
        f"No, there is no {name} in the picture.",
        (_in_all(shapes),),
    )


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
    shapes = _in_rows(list(facts.shapes))
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
                    f"The {s.place} holds {article(s.size)} {s.name}.",
                    f"I see {article(s.name)} of {s.size} size in the {s.place}.",
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
