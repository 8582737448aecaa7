"""What the target is asked: folders of pictures and prompts, and datasets of the hub.

A folder holds either

* `*.jsonl`, one object a line: `prompt` or `messages`, and `image` or `images`, paths within the
  folder; an `id` and a `temperature` where the lines have ones of their own; or
* pictures, and `prompts.txt` with one prompt a line: every picture is asked one of them in turn.

Of a dataset, `datasets.load_dataset` gives the rows; they have the same names, or those that the
recipe says. Conversations in LLaVA's and ShareGPT's manner (`from`, `value`) are known.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from vispec.errors import ImageError, SettingsError
from vispec.training.distill import Question

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
LONGER = (
    " Answer in as much detail as you can.",
    " Please write a long and detailed answer.",
    " Explain at length, with at least two hundred words.",
    " Give a thorough answer of several paragraphs.",
)
"""What is added to a prompt so that its answer is long: short ones teach a draft little."""

WITHOUT_PROMPT = "without a prompt"
"""Why most rows that are left out are."""


@dataclass(config=ConfigDict(extra="forbid"), frozen=True)
class Source:
    """Where questions come from.

    Attributes:
        path: a folder, a `.jsonl` file, or the name of a dataset on the hub.
        config, split: of a dataset.
        first, limit: which of its rows; all behind the first where the limit is 0.
        prompt, image: names of its columns, where they are none of the known ones.
        shown: whether pictures are shown; questions without them teach the target's language.
        temperature: of the answers.
        longer: ask for long answers.
    """

    path: str
    config: str = ""
    split: str = "train"
    first: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0)] = 0
    prompt: str = ""
    image: str = ""
    shown: bool = True
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    longer: bool = False

    def overlaps(self, other: Source) -> bool:
        """Whether both may have a row of the same file, folder or dataset.

        Of slices of a split it is not known which rows they are.
        """
        if self._place() != other._place():
            return False
        if self.split != other.split and not Path(self.path).exists():
            return not self._splits().isdisjoint(other._splits())
        ends = [one.first + one.limit if one.limit else math.inf for one in (self, other)]
        return self.first < ends[1] and other.first < ends[0]

    def _place(self) -> tuple[str, str]:
        path = Path(self.path)
        return (str(path.resolve()), "") if path.exists() else (self.path, self.config)

    def _splits(self) -> set[str]:
        return {part.split("[")[0].strip() for part in self.split.split("+")}


def questions(source: Source, name: str) -> list[Question]:
    """The questions of a source; rows that cannot be asked are left out, counted and named.

    Args:
        name: tells them from other sources'.

    Raises:
        SettingsError: if there is nothing to ask.
    """
    found, skipped, seen, row = [], dict[str, list[str]](), Counter[str](), dict[str, Any]()
    for key, row in _rows(source):
        seen[key] += 1
        own = f"{name}-{key}" if seen[key] == 1 else f"{name}-{key}-{seen[key]}"
        prompt = _prompt(row, source, own)
        temperature = row.get("temperature")
        if prompt is None:
            skipped.setdefault(WITHOUT_PROMPT, []).append(own)
        elif not _is_temperature(temperature):
            skipped.setdefault("with a temperature that is none", []).append(own)
        else:
            found.append(_question(row, source, own, prompt))
    if not found and list(skipped) == [WITHOUT_PROMPT]:
        raise SettingsError(
            f"question '{skipped[WITHOUT_PROMPT][0]}' of {source.path!r} has no prompt among"
            f" {', '.join(row)}, nor has any other",
            "Name the column with prompt = …",
        )
    for reason, keys in skipped.items():
        told = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
        print(f"skipped {len(keys)} rows {reason}: {told}", file=sys.stderr, flush=True)
    if not found:
        raise SettingsError(f"{source.path!r} holds no questions", __doc__ or "")
    return found


def _is_temperature(value: Any) -> bool:
    """Whether a row's temperature can be sampled at, or is left to the source."""
    return value is None or (type(value) in (int, float) and 0 <= value < math.inf)


def refuse_shared(asked: Mapping[str, Sequence[Question]], unseen: str) -> None:
    """Raise if a question is asked in one source and in the one that nothing may learn from.

    Pictures in files are known by where they are; those of a dataset are not opened for this.
    """
    kept = {_identity(question): question.key for question in asked[unseen]}
    for name, group in asked.items():
        shared = [one.key for one in group if name != unseen and _identity(one) in kept]
        if shared:
            raise SettingsError(
                f"[data.{name}] and [data.{unseen}] share {len(shared)} questions,"
                f" '{shared[0]}' for one",
                "What acceptance is measured on must not be learnt from.",
            )


def _identity(question: Question) -> tuple[str, ...]:
    """Who says what about which pictures, without what asks for long answers."""
    pictures = [
        str(Path(one).resolve()) if isinstance(one, str) else question.key
        for one in question.images
    ]
    said = " ".join(" ".join(_said(question.prompt)).split())
    for words in LONGER:
        said = said.removesuffix(words.strip()).rstrip()
    return (said, *pictures)


def _said(prompt: str | Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All words of a prompt, whether a text or a conversation."""
    if isinstance(prompt, str):
        yield prompt
        return
    for message in prompt:
        role, content = str(message.get("role")), message.get("content") or []
        yield "" if role == "user" else f"{role}:"
        parts = [{"text": content}] if isinstance(content, str) else content
        yield from (str(part.get("text") or "") for part in parts if isinstance(part, Mapping))


def _rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that are wanted and what names each, pictures as paths or as what opens them."""
    path = Path(source.path)
    if path.suffix == ".jsonl" and not path.exists():
        raise SettingsError(
            f"there is no file {source.path!r}", "Paths are from the recipe's folder, or from here."
        )
    if not path.exists():
        return _dataset(source)
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    rows = chain.from_iterable(map(_lines, files)) if files else _pictures(path)
    return islice(rows, source.first, source.first + source.limit if source.limit else None)


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except ValueError as error:  # no JSON, or no UTF-8
                raise SettingsError(f"line {number} of {file} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SettingsError(f"line {number} of {file} is no object")
            yield f"{file.stem}-{row.get('id', number)}", _placed(row, file.parent)


def _placed(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Its pictures' paths from here."""
    for key in ("image", "images"):
        value = row.get(key)
        if isinstance(value, str):
            row = {**row, key: str(folder / value)}
        elif isinstance(value, list):
            row = {**row, key: [str(folder / x) if isinstance(x, str) else x for x in value]}
    return row


def _pictures(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    file = folder / "prompts.txt"
    if not file.is_file():
        return
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is no text: {error}", "Save it as UTF-8.") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise SettingsError(f"{file} holds no prompts", "Write one a line.")
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES)
    for number, path in enumerate(found):
        prompt = prompts[number % len(prompts)]
        yield str(path.relative_to(folder)), {"prompt": prompt, "image": str(path)}


def _dataset(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SettingsError(
            f"{source.path!r} is no folder; datasets of the hub need the package datasets",
            "pip install 'vispec[train]'",
        ) from error
    try:
        rows = load_dataset(source.path, source.config or None, split=source.split)
    except Exception as error:  # its own errors, and those of whichever client it uses
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(
            f"{source.path!r} is neither a folder nor a dataset that can be loaded ({reason})"
        ) from error
    last = min(source.first + source.limit, len(rows)) if source.limit else len(rows)
    rows = rows.select(range(min(source.first, last), last))
    column = _picture_column(rows.column_names, source)
    # Pictures are opened when they are shown: there may be more of them than memory has room for.
    texts = rows if column is None else rows.remove_columns([column])
    for number, row in enumerate(texts):
        shown = {} if column is None else {column: [partial(_cell, rows, number, column)]}
        yield str(row.get("id", source.first + number)), {**row, **shown}


def _cell(rows: Any, number: int, column: str) -> Any:
    try:
        return rows[number][column]
    except Exception as error:  # whatever the decoder of its format raises
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise ImageError.unusable(
            f"the picture in row {number}", reason, "leave the row out"
        ) from error


def _picture_column(names: Collection[str], source: Source) -> str | None:
    known = [source.image] if source.image else ["images", "image"]
    return next((name for name in known if name in names), None)


def _question(row: Mapping[str, Any], source: Source, key: str, prompt: Any) -> Question:
    images: list[Any] = []
    if source.shown:
        column = _picture_column(row, source)
        value = None if column is None else row[column]
        images = [] if value is None else list(value) if isinstance(value, list) else [value]
    own = row.get("temperature")
    return Question(key, prompt, images, source.temperature if own is None else own)


def _prompt(row: Mapping[str, Any], source: Source, key: str) -> Any:
    """The text, or the messages up to the last one of the user's; None of a row without any."""
    names = (
        (source.prompt,) if source.prompt else ("messages", "prompt", "question", "conversations")
    )
    value = next((row[name] for name in names if row.get(name)), None)
    longer = LONGER[hashlib.sha256(key.encode()).digest()[0] % len(LONGER)] * source.longer
    if isinstance(value, str):
        return value.replace("<image>", "").strip() + longer
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return None
    if "role" not in value[0]:
        first = next((turn.get("value") for turn in value if turn.get("from") in ASKING), None)
        return first.replace("<image>", "").strip() + longer if isinstance(first, str) else None
    last = max((i for i, turn in enumerate(value) if turn.get("role") == "user"), default=None)
    if last is None:
        return None
    return [*value[:last], _extended(value[last], longer)]


def _extended(message: Mapping[str, Any], more: str) -> Mapping[str, Any]:
    """A message of the user's with words behind it."""
    content = message.get("content")
    if not more:
        return message
    if isinstance(content, str):
        return {**message, "content": content + more}
    return {**message, "content": [*(content or []), {"type": "text", "text": more.strip()}]}


ASKING = ("human", "user")
"""Who asks, in LLaVA's and ShareGPT's manner."""
