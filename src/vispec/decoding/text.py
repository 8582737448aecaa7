"""Tokens to text as they come: whole characters, right spaces, and stop strings held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Piece:
    """Text that became certain.

    Attributes:
        text: may be empty for tokens without text.
        token_ids: the tokens behind it, in order; together the pieces hold every token once.
        drafted: whether the draft proposed the piece's last token.
        request: which request of a list it belongs to.
    """

    text: str
    token_ids: list[int]
    drafted: bool
    request: int = 0


class Detokenizer:
    """Incremental decoding.

    A token's text depends on its neighbours (spaces in SentencePiece, characters of several byte
    tokens), so the newest tokens are always decoded together with those before them. What was
    returned stays: only a SentencePiece decoder given bytes that are no UTF-8 ever thinks again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the newest tokens, and those that their text depends on
        self._older = 0  # how many of them the text needs no more, once newer ones have text
        self._told = 0  # characters of the window's text that have been returned

    def push(self, *tokens: int) -> str:
        """The text that `tokens` make certain; empty in the middle of a character."""
        self._window += tokens
        text = self._decode()
        certain = len(text.rstrip(_INCOMPLETE))
        new = text[self._told : certain]
        self._told = max(self._told, certain)
        # A window that begins behind tokens without text would lose the space that follows them.
        if new and certain == len(text):
            del self._window[: self._older]
            self._older, self._told = len(self._window), len(self._decode())
        return new

    def flush(self) -> str:
        """What is left at the end, incomplete characters as replacement characters."""
        text = self._decode()
        new = text[self._told :]
        self._told = len(text)
        return new

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(
            self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class TextStream:
    """An answer's text: pieces as they become certain, and where a stop string ends it.

    Tokens are decoded when a stop string or a reader of `pieces` needs them, and at the end all at
    once where neither does.

    Args:
        tokenizer: of the target.
        stop: strings, each of which ends the answer; they are not part of the text.
        request: copied into the pieces.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), request: int = 0) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop, self._request = tuple(stop), request
        self._longest = max(map(len, self._stop), default=0)
        self._held: list[Piece] = []
        self._unread: list[tuple[int, bool]] = []
        self._ids: list[int] = []
        self._drafted = False  # whether the draft proposed the last of them
        self.text = ""
        self.stopped = False

    def push(self, token: int, drafted: bool) -> bool:
        """Take in a token; True where it completes a stop string, which cuts the text there."""
        self._unread.append((token, drafted))
        if self._stop:
            self._read_each()
        return self.stopped

    def finish(self) -> None:
        """No more tokens will come."""
        if self._unread:
            self._read(self._unread)
            self._unread = []
        if not self.stopped:
            self._add(self._detokenizer.flush())
        if self._ids:
            self._held.append(Piece("", self._ids, self._drafted, self._request))
            self._ids = []

    def pieces(self, *, last: bool = False) -> list[Piece]:
        """The pieces that no stop string can cut any more; all that are left when `last`."""
        self._read_each()
        keep = 0 if last or self.stopped else self._possible_stop()
        ready: list[Piece] = []
        pending = sum(len(piece.text) for piece in self._held)
        while self._held and pending - len(self._held[0].text) >= keep:
            pending -= len(self._held[0].text)
            ready.append(self._held.pop(0))
        return ready

    def _read_each(self) -> None:
        for told in self._unread:
            self._read([told])
        self._unread = []

    def _read(self, told: Sequence[tuple[int, bool]]) -> None:
        tokens = [token for token, _ in told]
        self._ids += tokens
        self._drafted = told[-1][1]
        self._add(self._detokenizer.push(*tokens))

    def _add(self, text: str) -> None:
        if not text:
            return
        before = len(self.text)
        self.text += text
        start = max(0, before - self._longest + 1)
        found = [at for at in (self.text.find(s, start) for s in self._stop) if at >= 0]
        self._held.append(Piece(text, self._ids, self._drafted, self._request))
        self._ids = []
        if found:
            self.stopped = True
            self._cut(len(self.text) - min(found))
            self.text = self.text[: min(found)]

    def _cut(self, count: int) -> None:
        """Take `count` characters off the end of what is held; tokens stay."""
        for index in range(len(self._held) - 1, -1, -1):
            if not count:
                break
            piece = self._held[index]
            keep = max(0, len(piece.text) - count)
            count -= len(piece.text) - keep
            self._held[index] = Piece(
                piece.text[:keep], piece.token_ids, piece.drafted, piece.request
            )

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(
            (
                n
                for s in self._stop
                for n in range(1, min(len(s), len(self.text) + 1))
                if self.text.endswith(s[:n])
            ),
            default=0,
        )
