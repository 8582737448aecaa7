"""Conversations in either format come out the same, and what they show is found or refused."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vispec.errors import ConversationError
from vispec.messages import Fetcher, conversation

CAT, DOG = b"cat", b"dog"
DATA = "data:image/png;base64," + base64.b64encode(CAT).decode()


def test_a_question_is_a_message_with_what_it_shows_before_it() -> None:
    found = conversation("what ?", [CAT, DOG], ["a.mp4"])
    content = [{"type": "image"}, {"type": "image"}, {"type": "video"}]
    question = {"type": "text", "text": "what ?"}
    assert found.messages == [{"role": "user", "content": [*content, question]}]
    assert found.images == [CAT, DOG]
    assert found.videos == ["a.mp4"]


OPENAI: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "and this"},
            {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
            {"type": "video_url", "video_url": {"url": "file:///tmp/a%20b.mp4"}},
        ],
    },
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": [{"type": "text", "text": "sure ?"}]},
]
RESPONSES = [
    OPENAI[0],
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "and this"},
            {"type": "input_image", "image_url": DATA},
            {"type": "input_video", "video_url": "file:///tmp/a%20b.mp4"},
        ],
    },
    {"role": "assistant", "content": [{"type": "output_text", "text": "a cat"}]},
    OPENAI[3],
]
HUGGING_FACE = [
    OPENAI[0],
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "and this"},
            {"type": "image", "base64": base64.b64encode(CAT).decode()},
            {"type": "video", "path": Path("/tmp/a b.mp4")},
        ],
    },
    OPENAI[2],
    OPENAI[3],
]


@pytest.mark.parametrize("messages", [OPENAI, RESPONSES, HUGGING_FACE], ids=["chat", "new", "hf"])
def test_every_format_comes_out_as_hugging_faces(messages: list[dict[str, Any]]) -> None:
    found = conversation(messages)
    content = found.messages[1]["content"]
    assert content == [{"type": "text", "text": "and this"}, {"type": "image"}, {"type": "video"}]
    assert [message["role"] for message in found.messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert found.images == [CAT]
    assert found.videos == [Path("/tmp/a b.mp4")]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": {"base64": base64.b64encode(CAT).decode()}},
        {"type": "image", "base64": base64.encodebytes(CAT).decode()},
        {"type": "image", "base64": DATA},
        {"type": "image", "url": DATA.replace("data:", "DATA:")},
    ],
    ids=str,
)
def test_pictures_in_text_are_read_however_they_are_wrapped(part: dict[str, Any]) -> None:
    assert conversation([{"role": "user", "content": [part]}]).images == [CAT]


def test_places_take_the_images_given_in_order() -> None:
    parts = [
        {"type": "image"},
        {"type": "image", "image": DOG},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    found = conversation([{"role": "user", "content": parts}], [CAT, "b.png"])
    assert found.images == [CAT, DOG, "b.png"]


def test_what_is_given_is_left_as_it_was() -> None:
    images = [CAT, DOG]
    conversation(OPENAI)
    conversation("what ?", images)
    assert images == [CAT, DOG]
    assert OPENAI[1]["content"][1]["image_url"] == {"url": DATA, "detail": "low"}


@pytest.mark.parametrize(("places", "given"), [(2, 1), (1, 2), (0, 1), (1, 0)])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_places_without_images_and_images_without_places_are_counted(
    kind: str, places: int, given: int
) -> None:
    messages = [{"role": "user", "content": [{"type": kind}] * places}]
    shown: dict[str, Any] = {f"{kind}s": [CAT] * given}
    with pytest.raises(ConversationError, match=f"{places} {kind} places, but {given} {kind}s"):
        conversation(messages, **shown)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "cat", "content": "a"}], ["message 0", "'cat'", "user"]),
        ([{"content": "a"}], ["message 0", "None", "assistant"]),
        (["a"], ["message 0", "'a'"]),
        ([{"role": "user", "content": 3}], ["message 0", "int", "list of parts"]),
        ([{"role": "user", "content": [7]}], ["part 0", "int"]),
        ([{"role": "user", "content": [{"type": "text"}]}], ["part 0", "no text"]),
        ([{"role": "user", "content": [{"type": ["image"]}]}], ["part 0", "['image']"]),
        (
            [{"role": "user", "content": [{"type": "image", "url": "http://[::1/b"}]}],
            ["part 0", "http://[::1/b", "none"],
        ),
        ([{"role": "user", "content": [{"type": "smell"}]}], ["part 0", "'smell'", "image_url"]),
        (
            [{"role": "user", "content": [{"type": "image", "url": "ftp://a/b"}]}],
            ["part 0", "'ftp:'", "http(s)"],
        ),
        (
            [{"role": "user", "content": [{"type": "image", "url": "https://a.org/b.png"}]}],
            ["part 0", "'https://a.org/b.png'", "allow its host"],
        ),
        (
            [{"role": "user", "content": [{"type": "image", "url": "data:;base64,%%"}]}],
            ["part 0", "cannot be decoded", "base64"],
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_with_its_place(messages: list[Any], words: list[str]) -> None:
    with pytest.raises(ConversationError) as error:
        conversation(messages)
    for word in words:
        assert word in str(error.value)


def test_a_fetcher_gets_what_is_remote() -> None:
    asked: list[str] = []

    def fetch(address: str) -> bytes:
        asked.append(address)
        return DOG

    part = {"type": "image_url", "image_url": {"url": "https://a.org/b.png"}}
    assert conversation([{"role": "user", "content": [part]}], fetch=fetch).images == [DOG]
    assert asked == ["https://a.org/b.png"]


# --- The fetcher ----------------------------------------------------------------------------------


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://localhost:1/cat")
            self.end_headers()
            return
        if self.path == "/again":
            self.send_response(302)
            self.send_header("Location", "/cat")
            self.end_headers()
            return
        body = b"x" * 5000 if self.path == "/large" else CAT
        self.send_response(200 if self.path != "/none" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_allowed_hosts_are_fetched_and_redirects_within_them_followed(pages: str) -> None:
    fetch = Fetcher(["127.0.0.1"])
    assert fetch(f"{pages}/cat") == CAT
    assert fetch(f"{pages}/again") == CAT


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/away", ["'localhost'", "not allowed", "127.0.0.1"]),
        ("/large", ["larger than", "/large"]),
        ("/none", ["/none", "404"]),
    ],
)
def test_what_cannot_be_had_is_said(pages: str, path: str, words: list[str]) -> None:
    fetch = Fetcher(["127.0.0.1"], max_bytes=1000)
    with pytest.raises(ConversationError) as error:
        fetch(pages + path)
    for word in words:
        assert word in str(error.value)


def test_a_host_that_does_not_answer_is_an_error(pages: str) -> None:
    with pytest.raises(ConversationError, match="cannot be fetched"):
        Fetcher(["127.0.0.1"], timeout=2)("http://127.0.0.1:9/cat")


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        (["a.org"], "a.org", True),
        (["a.org"], "b.a.org", False),
        (["a.org"], "aa.org", False),
        (["*.a.org"], "b.a.org", True),
        (["*.a.org"], "a.org", False),
        (["*.a.org"], "ba.org", False),
        (["A.org"], "a.ORG", True),
        ([], "a.org", False),
        (["a.org"], None, False),
    ],
)
def test_hosts_are_allowed_by_their_whole_name(
    hosts: list[str], host: str | None, allowed: bool
) -> None:
    assert Fetcher(hosts).allows(host) == allowed


@pytest.mark.parametrize("host", ["http://a.org/", "a.org:80", "a b", ""])
def test_what_is_no_host_is_refused_before_anything_is_fetched(host: str) -> None:
    with pytest.raises(ConversationError, match="is no host"):
        Fetcher([host])


@pytest.mark.parametrize("host", ["a.org", "127.0.0.1", "::1", "*.b-c.org"])
def test_a_host_alone_is_a_list_of_one(host: str) -> None:
    assert Fetcher(host).hosts == (host,)
