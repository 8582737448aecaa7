"""Conversations as people have them: OpenAI's message format, Hugging Face's, or a question.

Either way they come out as Hugging Face's, images and videos as bare places in the text, and what
is to be shown there as lists in the same order. Nothing is decoded here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import HTTPErrorProcessor, build_opener

from vispec.errors import ConversationError
from vispec.images import ImageSource
from vispec.videos import VideoSource

Fetch = Callable[[str], bytes]
"""Gets what lies behind a remote address; whoever gives one decides which are allowed."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT = ("text", "input_text", "output_text")
_SHOWN = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}
"""Types of parts that show something, in either format, and what they show."""
_KEYS = ("url", "path", "base64")


@dataclass(frozen=True)
class Conversation:
    """What a target's chat template takes.

    Attributes:
        messages: in Hugging Face's format; images and videos are `{"type": "image"}` and
            `{"type": "video"}` alone.
        images: what belongs at the image places, in order.
        videos: the same for videos.
    """

    messages: list[dict[str, Any]]
    images: list[ImageSource]
    videos: list[VideoSource]


def conversation(
    prompt: str | Sequence[Mapping[str, Any]],
    images: Sequence[ImageSource] = (),
    videos: Sequence[VideoSource] = (),
    *,
    fetch: Fetch | None = None,
) -> Conversation:
    """Read a question, or messages in OpenAI's or Hugging Face's format.

    Args:
        prompt: a question about all of `images` and `videos`, or messages. Their parts may bring
            their own images (`{"type": "image_url", "image_url": {"url": …}}`,
            `{"type": "image", "image" | "path" | "url" | "base64": …}`); parts that bring none
            take the next of `images`. The same goes for videos.
        images: paths, bytes, pictures or arrays.
        videos: paths, bytes or arrays of frames.
        fetch: gets remote addresses; None allows none.

    Raises:
        ConversationError: for messages that are in neither format, more or fewer images than
            places, or an address that may not be fetched.
    """
    given = {
        kind: [_resolved(one, f"{kind} {i}", kind, fetch) for i, one in enumerate(sources)]
        for kind, sources in (("image", images), ("video", videos))
    }
    found: dict[str, list[Any]] = {"image": [], "video": []}
    if isinstance(prompt, str):
        places = [{"type": kind} for kind, own in given.items() for _ in own]
        prompt = [{"role": "user", "content": [*places, {"type": "text", "text": prompt}]}]
    messages = []
    for number, message in enumerate(prompt):
        where = f"message {number}"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise ConversationError(
                f"{where} has the role {role!r}", f"it must be one of {', '.join(ROLES)}"
            )
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            parts = []
            for place, part in enumerate(content):
                parts.append(_part(part, f"{where}, part {place}", found, fetch))
            content = parts
        elif not isinstance(content, str) and content is not None:
            raise ConversationError(
                f"{where} has content of type {type(content).__name__}",
                "give a text or a list of parts",
            )
        messages.append({**message, "content": content if content is not None else ""})
    return Conversation(messages, *(_filled(kind, found[kind], given[kind]) for kind in found))


def _filled(kind: str, sources: list[Any], given: Sequence[Any]) -> list[Any]:
    """Sources with the given ones in the places that bring none."""
    bare = sum(source is None for source in sources)
    if bare != len(given):
        raise ConversationError(
            f"the conversation has {bare} {kind} places, but {len(given)} {kind}s were given",
            f"give one {kind} for each place",
        )
    following = iter(given)
    return [next(following) if source is None else source for source in sources]


def _part(
    part: Any,
    where: str,
    found: dict[str, list[Any]],
    fetch: Fetch | None,
) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise ConversationError(f"{where} is a {type(part).__name__}", "give a text or an object")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise ConversationError(f"{where} has the type {kind!r}", "give a text")
    if kind in _TEXT:
        if not isinstance(part.get("text"), str):
            raise ConversationError(f"{where} has no text", "give its 'text'")
        return {"type": "text", "text": part["text"]}
    if kind not in _SHOWN:
        known = ", ".join(("text", *_SHOWN))
        raise ConversationError(f"{where} has the type {kind!r}", f"known types are {known}")
    shows = _SHOWN[kind]
    source = _source(part, kind, shows)
    found[shows].append(None if source is None else _resolved(source, where, shows, fetch))
    return {"type": shows}


def _source(part: Mapping[str, Any], kind: str, shows: str) -> Any:
    """What a part brings along, None where it is only a place."""
    value = part.get(kind) if part.get(kind) is not None else part.get(shows)
    if value is None and kind.startswith("input_"):
        value = part.get(f"{shows}_url")
    if value is None or isinstance(value, Mapping):
        said = part if value is None else value
        given = next((key for key in _KEYS if said.get(key) is not None), None)
        value = said[given] if given else None
        if given == "base64" and isinstance(value, str) and not is_address(value):
            return f"data:;base64,{value}"
    return value


def is_address(source: str) -> bool:
    """Whether a text is an address rather than a path."""
    return re.match(r"data:|[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def _resolved(source: Any, where: str, shows: str, fetch: Fetch | None) -> Any:
    """A source that needs no network: addresses are fetched, data addresses decoded."""
    if not isinstance(source, str) or not is_address(source):
        return source
    try:
        address = urlsplit(source)
    except ValueError as error:
        raise ConversationError(
            f"{where} has the address {source[:100]!r}, which is none ({error})",
            "give a path, a data: address, or http(s)",
        ) from error
    if address.scheme == "data":
        return _data(source, where)
    if address.scheme == "file":
        return Path(unquote(address.path))
    if address.scheme not in ("http", "https"):
        raise ConversationError(
            f"{where} has an address of the kind '{address.scheme}:'",
            "give a path, a data: address, or http(s)",
        )
    if fetch is None:
        raise ConversationError(
            f"{where} is at the remote address {source[:100]!r}, and none may be fetched",
            f"download the {shows} first, or allow its host",
        )
    return fetch(source)


def _data(source: str, where: str) -> bytes:
    head, _, body = source.partition(",")
    try:
        if head.lower().endswith(";base64"):
            return base64.b64decode("".join(body.split()), validate=True)
        return unquote(body).encode("latin-1")
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ConversationError(
            f"{where} has a data: address that cannot be decoded ({error})",
            "encode the file in base64",
        ) from error


class Fetcher:
    """Gets images and videos from the hosts that are allowed, and from no other.

    Args:
        hosts: names of hosts; `"*.example.org"` allows every host below `example.org`. All of their
            ports are allowed.
        max_bytes: the most that is read of one file.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self, hosts: Sequence[str], *, max_bytes: int = 64 * 2**20, timeout: float = 20
    ) -> None:
        if isinstance(hosts, str):
            hosts = [hosts]
        for host in hosts:
            if not re.fullmatch(
                r"(\*\.)?[\w.-]+|\[?[0-9a-f:]*:[0-9a-f:.]*\]?", host, re.IGNORECASE
            ):
                raise ConversationError(
                    f"{host!r} is no host", "give its name alone, without http:// and port"
                )
        self.hosts, self.max_bytes, self.timeout = tuple(hosts), max_bytes, timeout

    def allows(self, host: str | None) -> bool:
        if host is None:
            return False
        host, known = host.lower(), [allowed.lower() for allowed in self.hosts]
        return any(
            host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:]))
            for allowed in known
        )

    def __call__(self, address: str) -> bytes:
        """The bytes at an address.

        Raises:
            ConversationError: if its host, or one that it leads to, is not allowed, or it cannot
                be had.
        """
        try:
            for _ in range(5):
                scheme, host = urlsplit(address).scheme, urlsplit(address).hostname
                if scheme not in ("http", "https"):
                    raise ConversationError(
                        f"{address[:100]!r} is no address of the web", "give an http(s) address"
                    )
                if not self.allows(host):
                    allowed = ", ".join(self.hosts) or "none"
                    raise ConversationError(
                        f"the host {host!r} is not allowed", f"allowed are: {allowed}"
                    )
                with _opener.open(address, timeout=self.timeout) as answer:
                    if answer.status in _REDIRECTS and answer.headers.get("Location"):
                        address = urljoin(address, answer.headers["Location"])
                        continue
                    if answer.status != 200:
                        raise ConversationError(
                            f"{address[:100]!r} answers {answer.status} {answer.reason}",
                            "check the address",
                        )
                    body: bytes = answer.read(self.max_bytes + 1)
                if len(body) > self.max_bytes:
                    raise ConversationError(
                        f"{address[:100]!r} is larger than {self.max_bytes / 2**20:.3g} MiB",
                        "give a smaller file",
                    )
                return body
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, ConversationError):
                raise
            raise ConversationError(
                f"{address[:100]!r} cannot be fetched ({error})", "check the address"
            ) from error
        raise ConversationError(
            f"{address[:100]!r} leads from one address to the next", "give the last one"
        )


class _Silent(HTTPErrorProcessor):
    """Hands answers over as they are: a redirect may lead to a host that is not allowed."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


_REDIRECTS = (301, 302, 303, 307, 308)
_opener = build_opener(_Silent)

__all__ = ["Conversation", "Fetch", "Fetcher", "conversation"]
