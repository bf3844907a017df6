"""The grammar of endpoint strings: ``scheme:[//authority][/path][?option=value&...]``.

Pure: nothing is opened, looked up or run here, whatever a string says. What does not fit raises
`EndpointError` with one line that names what would.

An endpoint that listens is ``scheme+listen:``; the option ``listen`` says the same.

Paths, hosts, commands and values are percent-decoded, once: ``%20`` is a space, and ``%``, ``?`` and ``#``
in a name or a command are written ``%25``, ``%3F`` and ``%23``. A ``+`` is a plus.
"""

from __future__ import annotations

import encodings.idna
import ipaddress
import os
import re
import shlex
import unicodedata
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from .errors import EndpointError

__all__ = [
    "Address",
    "Url",
    "address",
    "command_line",
    "decoded",
    "descriptor",
    "descriptors",
    "interface",
    "listening_address",
    "nothing",
    "path",
    "question_hint",
    "socket_path",
    "split_url",
    "words",
]

encodings.idna  # noqa: B018 - read from disk now, and not when the first name is checked

_HEAD = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)(\+listen)?:")
_AUTHORITY = re.compile(r"(?:\[(?P<six>[^\[\]@]*)\]|(?P<name>[^\[\]@:]*)):(?P<port>[0-9]{1,5})")
_COMMANDS = ("exec", "shell")
_QUESTION = "a ? of the command itself is written %3F"
_DESCRIPTORS = re.compile(r"([0-9]{1,9})(?:,([0-9]{1,9}))?")


class Url(NamedTuple):
    """The parts of an endpoint string, still encoded."""

    text: str
    scheme: str
    listens: bool
    authority: str
    path: str
    query: str


class Address(NamedTuple):
    host: str
    port: int


def split_url(text: str) -> Url:
    """Take *text* apart; ``-`` is ``stdio:``, also before options.

    :raises EndpointError: it has not the form of an endpoint.
    """
    if not isinstance(text, str):
        raise TypeError(f"an endpoint is a string, not {text!r}")
    for character in text:
        if unicodedata.category(character) == "Cc":
            raise EndpointError(
                f"{text!r}: control characters are not allowed (in a path: %{ord(character):02X})"
            )
    written = text
    if text == "-" or text.startswith("-?"):
        text = f"stdio:{text[1:]}"
    head = _HEAD.match(text)
    if head is None:
        raise EndpointError(
            f"{text!r} is no endpoint; one is -, or scheme:..., as file:/path or tcp://host:port"
        )
    if "#" in text:
        raise EndpointError(f"{text!r}: a # in a name is written %23")
    try:
        parts = urlsplit(text)
    except ValueError as exc:
        raise EndpointError(f"{text!r}: {exc}") from None
    options = parts.query.split("&")
    listens = head[2] is not None
    if not listens and "listen" in options:
        listens = True
        options.remove("listen")
    return Url(written, head[1].lower(), listens, parts.netloc, parts.path, "&".join(options))


def decoded(url: Url, part: str) -> str:
    """Percent-decode, into what the file system's functions take."""
    if re.search(r"%(?![0-9a-fA-F]{2})", part):
        raise EndpointError(f"{url.text!r}: a % is followed by two hexadecimal digits; itself it is %25")
    try:
        text = os.fsdecode(unquote_to_bytes(part.encode("utf-8", "surrogateescape")))
    except UnicodeError:
        raise EndpointError(f"{url.text!r}: half a character") from None
    if "\0" in text:
        raise EndpointError(f"{url.text!r}: NUL is not allowed")
    return text


def question_hint(url: Url) -> str:
    """What may be behind an option that there is not."""
    return f" ({_QUESTION})" if url.scheme in _COMMANDS else ""


# -- what an endpoint points at ----------------------------------------------------------------------


def nothing(url: Url) -> None:
    if url.authority or url.path:
        raise EndpointError(f"{url.text!r}: nothing comes after {url.scheme}:")


def descriptors(url: Url) -> int | tuple[int, int]:
    """``N``, or ``R,W`` for one to read and one to write."""
    found = _DESCRIPTORS.fullmatch(url.path)
    if url.authority or found is None:
        raise EndpointError(
            f"{url.text!r}: fd:N takes a descriptor number, or two as in fd:R,W (read, write)"
        )
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def descriptor(url: Url) -> int:
    """``N``, and no pair."""
    found = descriptors(url)
    if not isinstance(found, int):
        raise EndpointError(f"{url.text!r}: one descriptor listens, as in fd+listen:N")
    return found


def path(url: Url) -> str:
    """A path; relative ones (``file:name``) are."""
    if url.authority:
        raise EndpointError(f"{url.text!r}: {url.scheme}: takes a path and no host, as in {url.scheme}:/path")
    if not url.path:
        raise EndpointError(f"{url.text!r}: the path is missing, as in {url.scheme}:/path")
    return decoded(url, url.path)


def socket_path(url: Url) -> str:
    """A path, or ``@name`` for an abstract one, which begins with NUL then (unix(7))."""
    found = path(url)
    if found == "@":
        raise EndpointError(f"{url.text!r}: the abstract name is missing, as in {url.scheme}:@name")
    return "\0" + found[1:] if url.path.startswith("@") else found


def command_line(url: Url) -> str:
    """What a shell is to make sense of."""
    form = f"{url.scheme}:PROGRAM ARGUMENTS"
    if url.authority:
        raise EndpointError(f"{url.text!r}: {url.scheme}: takes a command and no host, as in {form}")
    line = decoded(url, url.path)
    if not line.strip():
        raise EndpointError(f"{url.text!r}: the command is missing, as in {form}")
    if url.text.endswith("?"):
        raise EndpointError(f"{url.text!r}: no options follow; {_QUESTION}")
    return line


def words(url: Url) -> list[str]:
    """A program and its arguments, separated and quoted as for a shell, which is not there."""
    line = command_line(url)
    try:
        found = shlex.split(line)
    except ValueError as exc:
        raise EndpointError(f"{url.text!r}: {str(exc).lower()} (a quote itself is \\' or \\\")") from None
    if not found[0]:
        raise EndpointError(f"{url.text!r}: the program has no name")
    return found


def address(url: Url) -> Address:
    """``//host:port``, to connect to."""
    found = listening_address(url)
    if not found.host:
        raise EndpointError(f"{url.text!r}: the host is missing, as in {url.scheme}://host:port")
    if not found.port:
        raise EndpointError(f"{url.text!r}: port 0 is for listening; one to connect to is 1 to 65535")
    return found


def listening_address(url: Url) -> Address:
    """``//host:port``; without a host, every interface, and port 0 for any that is free."""
    form = f"{url.scheme}{'+listen' if url.listens else ''}://host:port"
    found = _AUTHORITY.fullmatch(url.authority)
    if found is None or url.path not in ("", "/"):
        raise EndpointError(
            f"{url.text!r}: it takes a host and a port, as in {form} (IPv6 in brackets: [::1])"
        )
    port = int(found["port"])
    if port > 65535:
        raise EndpointError(f"{url.text!r}: a port is 0 to 65535")
    host = decoded(url, found["name"] if found["six"] is None else found["six"])
    try:
        if found["six"] is not None:
            ipaddress.IPv6Address(host)
        else:
            host.encode("idna")
    except ValueError as exc:
        raise EndpointError(f"{url.text!r}: {str(exc) or 'no host name'}") from None
    return Address(host, port)


def interface(url: Url) -> str | None:
    """The name of an interface, with a ``%d`` for a number that is free (``%25d`` here); None for any."""
    if url.authority or "/" in url.path:
        form = f"{url.scheme}:name"
        raise EndpointError(f"{url.text!r}: it takes the name of an interface, as in {form}, without a slash")
    name = decoded(url, url.path)
    if len(os.fsencode(name)) > 15 or re.search(r"[:\s]", name):
        what = "the name of an interface has 15 bytes at most, and no colon or space"
        raise EndpointError(f"{url.text!r}: {what}")
    return name or None
