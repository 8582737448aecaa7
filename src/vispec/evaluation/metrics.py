"""How right an answer is. Nothing here knows a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_PLURALS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "kids": "kid",
    "babies": "baby",
    "ladies": "lady",
    "puppies": "puppy",
    "policemen": "policeman",
    "firemen": "fireman",
    "wolves": "wolf",
    "geese": "goose",
    "mice": "mouse",
    "buses": "bus",
    "benches": "bench",
    "beaches": "beach",
    "horses": "horse",
}
_SUBJECTS = """
man woman boy girl child kid baby toddler person people lady guy couple adult teenager teen youth
player athlete runner jogger skier snowboarder surfer skateboarder skater biker cyclist bicyclist
motorcyclist rider climber hiker swimmer diver dancer performer musician singer guitarist worker
vendor artist photographer driver racer cheerleader wrestler boxer fisherman policeman fireman
soldier officer clown bride groom mother father mom dad son daughter brother sister friend student
dog puppy cat kitten horse pony bird duck goose seagull cow sheep goat lamb elephant monkey bear
wolf fox deer rabbit fish animal greyhound poodle terrier collie
car truck bus van train boat ship kayak canoe raft bicycle bike motorcycle motorbike scooter plane
airplane helicopter skateboard snowboard surfboard
ball toy bench table chair house building bridge tower church street road beach mountain river lake
ocean waterfall tree field park city crowd team
"""
SUBJECTS = frozenset(_SUBJECTS.split())
"""Nouns that can name what a photograph is about; singular."""
_COLLECTIVES = frozenset(
    ("group", "crowd", "team", "couple", "pair", "bunch", "herd", "flock", "pack", "line", "row")
)


def distance(one: str, two: str) -> int:
    """Edit distance (Levenshtein) between two strings."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def quoted(answer: str) -> str:
    """What an answer says is written: the text between its first two double quotes.

    An unfinished quotation counts as far as it goes; without any, the bare answer does.
    """
    parts = answer.split('"')
    return parts[1] if len(parts) > 1 else answer.strip(" .")


def character_error_rate(true: Sequence[str], said: Sequence[str]) -> float:
    """Edits over all texts, per true character; above 1 where much is added."""
    edits = sum(distance(a, b) for a, b in zip(true, said, strict=True))
    return edits / max(1, sum(map(len, true)))


def character_accuracy(true: Sequence[str], said: Sequence[str]) -> float:
    """Share of characters read right; a text costs at most its own length."""
    lost = sum(min(len(a), distance(a, b)) for a, b in zip(true, said, strict=True))
    return 1 - lost / max(1, sum(map(len, true)))


def first_sentence(answer: str) -> str:
    """An answer up to its first full stop, letter case and spacing undone."""
    return " ".join(answer.split(".")[0].lower().split())


def stem(word: str) -> str:
    """The singular of a noun, roughly; other words may come back cut."""
    word = word.lower()
    if word in _PLURALS:
        return _PLURALS[word]
    cut = word.removesuffix("s")
    return cut if len(cut) > 2 and not word.endswith("ss") else word


def subject(caption: str) -> str | None:
    """The noun a caption is about: its first word that can be one, in the singular.

    The head of "a group of people" is what the group is made of.
    """
    words = [stem(word) for word in re.findall("[a-z]+", caption.lower())]
    for i, word in enumerate(words):
        if word in _COLLECTIVES and words[i + 1 : i + 2] == ["of"]:
            continue
        if word in SUBJECTS:
            return word
    return None


def names_the_subject(caption: str, references: Iterable[str]) -> bool:
    """Whether the caption's subject is a word of any reference; synonyms do not count."""
    named = subject(caption)
    seen = {stem(word) for text in references for word in re.findall("[a-z]+", text.lower())}
    return named is not None and named in seen


def distinct(texts: Sequence[str]) -> float:
    """Share of texts that say something that none before them said."""
    return len({" ".join(text.lower().split()) for text in texts}) / max(1, len(texts))
