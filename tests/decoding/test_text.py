"""Streamed text is the decoded text: characters whole, spaces right, stop strings never shown."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from transformers import PreTrainedTokenizerFast

import talking
from vispec.decoding.text import Detokenizer, Piece, TextStream

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
TOKENIZERS = {
    "byte level": talking.byte_level,
    "byte level, few bytes": talking.tokenizer,
    "sentencepiece": talking.sentencepiece,
    "metaspace": lambda: talking.sentencepiece("metaspace"),
}
TEXTS = [
    "the cat in the hat",
    " the  cat,   and a thing ",
    "你好, the 世界! 你你",
    "👩‍👩‍👧 the 🎈🎈 cat … é",
    "the\n\n\tcat\u200b the ﷺ ",
]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def whole(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return tokenizer.decode(  # type: ignore[return-value]
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def streamed(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> list[str]:
    """The text of every token as it came, and what was left at the end."""
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def random_ids(tokenizer: PreTrainedTokenizerFast, draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(len(tokenizer)) for _ in range(count)]


def valid_ids(tokenizer: PreTrainedTokenizerFast, draw: random.Random, count: int) -> list[int]:
    """Random tokens, special ones among them, whose bytes are whole characters."""
    ids: list[int] = []
    characters = ["é", "好", "🎈", "\u07ff", "\uffff", "A", " "]
    single = [i for i in range(len(tokenizer)) if "<0x" not in tokenizer.convert_ids_to_tokens(i)]
    for _ in range(count):
        if draw.random() < 0.4:
            data = draw.choice(characters).encode()
            ids += [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
        else:
            ids.append(draw.choice(single))
    return ids


def test_text_in_pieces_is_the_text_as_a_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == whole(tokenizer, ids)


@pytest.mark.parametrize("name", ["byte level", "byte level, few bytes", "metaspace"])
def test_random_tokens_in_pieces_are_their_whole_text_even_if_they_are_no_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for seed in range(300):
        draw = random.Random(seed)
        ids = random_ids(tokenizer, draw, draw.randrange(30))
        assert "".join(streamed(tokenizer, ids)) == whole(tokenizer, ids), ids


def test_random_characters_by_bytes_are_their_whole_text() -> None:
    tokenizer = talking.sentencepiece()
    for seed in range(300):
        draw = random.Random(seed)
        ids = valid_ids(tokenizer, draw, draw.randrange(30))
        assert "".join(streamed(tokenizer, ids)) == whole(tokenizer, ids), ids


def test_stray_bytes_of_a_sentencepiece_cost_no_other_text() -> None:
    """Its decoder judges a run of bytes as one, so the past of a stray byte may look different."""
    tokenizer = talking.sentencepiece()
    for seed in range(300):
        draw = random.Random(seed)
        ids = random_ids(tokenizer, draw, draw.randrange(30))
        ids = [i for i in ids if not 0 <= i - 3 < 0x80]  # ASCII has letters of its own
        parts = ["".join(streamed(tokenizer, ids)), whole(tokenizer, ids)]
        ours, theirs = (["".join(c for c in part if c.isascii())] for part in parts)
        assert ours == theirs, ids


def test_a_character_is_never_split(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if UNKNOWN in whole(tokenizer, ids):
            continue
        assert UNKNOWN not in "".join(streamed(tokenizer, ids)[:-1])


def test_text_is_shown_as_soon_as_it_is_certain(tokenizer: PreTrainedTokenizerFast) -> None:
    for seed in range(100):
        draw = random.Random(seed)
        ids = valid_ids(talking.sentencepiece(), draw, 20)
        if len(tokenizer) != len(talking.sentencepiece()):
            ids = random_ids(tokenizer, draw, 20)
        detokenizer, shown = Detokenizer(tokenizer), ""
        for count, token in enumerate(ids, 1):
            shown += detokenizer.push(token)
            certain = whole(tokenizer, ids[:count]).rstrip(UNKNOWN)
            assert len(shown) >= len(certain), (ids, count)


def test_the_space_behind_a_special_token_stays() -> None:
    tokenizer = talking.sentencepiece()
    ids = tokenizer.convert_tokens_to_ids(["▁the", "</s>", "</s>", "▁cat", "▁", "<s>", "▁a"])
    assert whole(tokenizer, ids) == "the cat  a"
    assert "".join(streamed(tokenizer, ids)) == "the cat  a"


def test_an_unfinished_character_at_the_end_is_shown_as_unknown() -> None:
    tokenizer = talking.byte_level()
    ids = tokenizer.convert_tokens_to_ids(["a", "ä½"])
    assert streamed(tokenizer, ids) == ["a", "", UNKNOWN]


# --- Streams with stop strings --------------------------------------------------------------------


def run(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: Sequence[str], drafted: list[bool]
) -> tuple[TextStream, list[list[Piece]]]:
    """Push tokens until one completes a stop string; the pieces that each token made certain."""
    stream, moments = TextStream(tokenizer, stop, request=4), []
    for token, flag in zip(ids, drafted, strict=True):
        stopped = stream.push(token, flag)
        assert stopped == stream.stopped
        moments.append(stream.pieces())
        if stopped:
            break
    stream.finish()
    moments.append(stream.pieces(last=True))
    return stream, moments


def expected(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: Sequence[str]
) -> tuple[str, int]:
    """The text before the first stop string, and the number of tokens that complete one."""
    for count in range(1, len(ids) + 1):
        text = whole(tokenizer, ids[:count]).rstrip(UNKNOWN)
        found = [text.index(s) for s in stop if s in text]
        if found:
            return text[: min(found)], count
    text = whole(tokenizer, ids)
    found = [text.index(s) for s in stop if s in text]
    return text[: min(found, default=len(text))], len(ids)


def some_stops(draw: random.Random, text: str) -> list[str]:
    """Strings from the text, strings almost from the text, and strings that begin each other."""
    stops = []
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(max(1, len(text)))
        found = text[start : start + draw.randint(1, 5)] or "x"
        stops.append(draw.choice((found, found + "q", found[:1], found + found)))
    return stops


def test_streams_end_where_brute_force_finds_the_first_stop_string(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    stopped = 0
    for seed in range(300):
        draw = random.Random(seed)
        if tokenizer is talking.sentencepiece():
            ids = valid_ids(tokenizer, draw, draw.randint(1, 20))
        else:
            ids = random_ids(tokenizer, draw, draw.randint(1, 30))
        drafted = [draw.random() < 0.5 for _ in ids]
        stop = some_stops(draw, whole(tokenizer, ids))
        stream, moments = run(tokenizer, ids, stop, drafted)
        text, count = expected(tokenizer, ids, stop)
        assert stream.text == text, (seed, ids, stop)
        pieces = [piece for moment in moments for piece in moment]
        assert "".join(piece.text for piece in pieces) == text
        assert [token for piece in pieces for token in piece.token_ids] == ids[:count]
        assert all(piece.request == 4 for piece in pieces)
        stopped += stream.stopped

        shown, at = "", 0
        for moment in moments:
            for piece in moment:
                at += len(piece.token_ids)
                assert piece.drafted == drafted[at - 1]
            shown += "".join(piece.text for piece in moment)
            assert text.startswith(shown)
    assert 100 < stopped < 300


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    tokenizer = talking.tokenizer()
    for seed in range(100):
        draw = random.Random(seed)
        text = "".join(draw.choice("ab") for _ in range(30))
        stop = ["".join(draw.choice("ab") for _ in range(draw.randint(2, 7))) for _ in range(2)]
        stream, shown, said = TextStream(tokenizer, stop), "", ""
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            if stream.push(token, False):
                break
            said += tokenizer.decode([token])  # type: ignore[operator]
            shown += "".join(piece.text for piece in stream.pieces())
            held = [n for s in stop for n in range(1, len(s)) if said.endswith(s[:n])]
            assert shown == said[: len(said) - max(held, default=0)]


def spoken(text: str, stop: Sequence[str]) -> tuple[str, str, list[str]]:
    """What is left of a text, what was consumed, and the text of the pieces."""
    tokenizer = talking.tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stream, moments = run(tokenizer, ids, stop, [False] * len(ids))
    pieces = [piece for moment in moments for piece in moment]
    consumed = [token for piece in pieces for token in piece.token_ids]
    return stream.text, whole(tokenizer, consumed), [piece.text for piece in pieces]


@pytest.mark.parametrize(
    ("text", "stop", "left", "consumed"),
    [
        ("stop here", ["stop"], "", "stop"),
        ("stop", ["s"], "", "s"),
        ("a cat", ["a cat"], "", "a cat"),
        ("a long stop here", [" stop"], "a long", "a long stop"),
        ("the end", ["he "], "t", "the "),
        ("abcabd", ["abd"], "abc", "abcabd"),
        ("aaab", ["aab"], "a", "aaab"),
        ("xyz", ["xyzzy", "yz"], "x", "xyz"),
        ("abcd", ["abcd", "bc"], "a", "abc"),
        ("abcd", ["bcd", "abc"], "", "abc"),
        ("abc", ["c", "bc", "abc"], "", "abc"),
        ("no such thing", ["zzz"], "no such thing", "no such thing"),
        ("almost sto", ["stop"], "almost sto", "almost sto"),
        ("aé…", ["é"], "a", "aé"),
        ("one\n\ntwo", ["\n\n"], "one", "one\n\n"),
    ],
)
def test_the_answer_ends_before_its_first_stop_string(
    text: str, stop: list[str], left: str, consumed: str
) -> None:
    found, eaten, pieces = spoken(text, stop)
    assert (found, eaten) == (left, consumed)
    assert "".join(pieces) == left


def test_a_stop_string_is_noticed_before_the_character_behind_it_is_whole() -> None:
    tokenizer = talking.byte_level()
    first, second = tokenizer.convert_tokens_to_ids(["aâĢ", "¦"])
    stream = TextStream(tokenizer, ["a"])
    assert stream.push(first, False)
    assert TextStream(tokenizer, ["…"]).push(first, False) is False
    stream = TextStream(tokenizer, ["…"])
    stream.push(first, False)
    assert stream.push(second, True)
    stream.finish()
    assert stream.pieces(last=True) == [Piece("a", [first], False), Piece("", [second], True)]


def test_a_token_without_text_belongs_to_a_piece_all_the_same() -> None:
    tokenizer = talking.tokenizer()
    cat = tokenizer("cat", add_special_tokens=False).input_ids
    stream, moments = run(tokenizer, [*cat, 2], [], [False] * len(cat) + [True])
    assert stream.text == "cat"
    assert moments[-1] == [Piece("", [2], True, 4)]


def test_no_tokens_make_no_pieces() -> None:
    stream = TextStream(talking.tokenizer(), ["x"])
    stream.finish()
    assert stream.pieces(last=True) == []
    assert stream.text == ""


@pytest.mark.parametrize("stop", [(), ("cat",)])
def test_what_nobody_reads_in_pieces_is_the_same_text(
    tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...]
) -> None:
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        read, unread = TextStream(tokenizer, stop), TextStream(tokenizer, stop)
        pushed: list[int] = []
        for token in ids:
            pushed.append(token)
            ended = read.push(token, False)
            read.pieces()
            assert unread.push(token, False) == ended
            if ended:
                break
        read.finish()
        unread.finish()
        assert unread.text == read.text
        pieces = unread.pieces(last=True)
        assert "".join(piece.text for piece in pieces) == read.text
        assert [token for piece in pieces for token in piece.token_ids] == pushed
