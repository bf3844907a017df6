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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from .errors import EndpointError

__all__ = [
    "Address",
    "Option",
    "Url",
    "address",
    "choice",
    "command_line",
    "descriptor",
    "descriptors",
    "directory",
    "file",
    "flag",
    "group",
    "hardware_address",
    "host_name",
    "interface",
    "interface_addresses",
    "key",
    "listening_address",
    "name",
    "names",
    "namespace",
    "networks",
    "nothing",
    "path",
    "permissions",
    "read_options",
    "seconds",
    "socket_path",
    "split_url",
    "whole",
    "window",
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


def _decode(url: Url, part: str) -> str:
    """Percent-decode, into what the file system's functions take."""
    if re.search(r"%(?![0-9a-fA-F]{2})", part):
        raise EndpointError(f"{url.text!r}: a % is followed by two hexadecimal digits; itself it is %25")
    try:
        decoded = os.fsdecode(unquote_to_bytes(part.encode("utf-8", "surrogateescape")))
    except UnicodeError:
        raise EndpointError(f"{url.text!r}: half a character") from None
    if "\0" in decoded:
        raise EndpointError(f"{url.text!r}: NUL is not allowed")
    return decoded


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
    return _decode(url, url.path)


def socket_path(url: Url) -> str:
    """A path, or ``@name`` for an abstract one, which begins with NUL then (unix(7))."""
    decoded = path(url)
    if decoded == "@":
        raise EndpointError(f"{url.text!r}: the abstract name is missing, as in {url.scheme}:@name")
    return "\0" + decoded[1:] if url.path.startswith("@") else decoded


def command_line(url: Url) -> str:
    """What a shell is to make sense of."""
    form = f"{url.scheme}:PROGRAM ARGUMENTS"
    if url.authority:
        raise EndpointError(f"{url.text!r}: {url.scheme}: takes a command and no host, as in {form}")
    decoded = _decode(url, url.path)
    if not decoded.strip():
        raise EndpointError(f"{url.text!r}: the command is missing, as in {form}")
    if url.text.endswith("?"):
        raise EndpointError(f"{url.text!r}: no options follow; {_QUESTION}")
    return decoded


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
    host = _decode(url, found["name"] if found["six"] is None else found["six"])
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
    name = _decode(url, url.path)
    if len(os.fsencode(name)) > 15 or re.search(r"[:\s]", name):
        what = "the name of an interface has 15 bytes at most, and no colon or space"
        raise EndpointError(f"{url.text!r}: {what}")
    return name or None


# -- options -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a scheme: the function that reads its value, and what that accepts, in words.

    *modes*: the directions in which the endpoint can be opened with it. *required*: it has to be there.
    *needs*: another option, without which it is of no use.
    """

    read: Callable[[str], Any]
    accepts: str
    modes: tuple[str, ...] = ("r", "w", "rw")
    required: bool = False
    needs: str = ""


def read_options(url: Url, known: Mapping[str, Option], mode: str) -> dict[str, Any]:
    """The options of *url*, each known, given once, with a value that fits and of use in *mode*."""
    found: dict[str, Any] = {}
    for item in url.query.split("&") if url.query else ():
        name, given, value = item.partition("=")
        option = known.get(name)
        if option is None:
            allowed = ", ".join(known) or "none"
            hint = f" ({_QUESTION})" if url.scheme in _COMMANDS else ""
            raise EndpointError(f"{url.text!r}: unknown option {name!r}; allowed here: {allowed}{hint}")
        if name in found:
            raise EndpointError(f"{url.text!r}: option {name!r} is given twice")
        if mode not in option.modes:
            way = "reading" if mode == "r" else "writing"
            raise EndpointError(f"{url.text!r}: option {name!r} is of no use for {way}")
        try:
            found[name] = option.read(_decode(url, value) if given else "")
        except ValueError:
            raise EndpointError(f"{url.text!r}: option {name!r} is {option.accepts}, not {value!r}") from None
    for name in found:
        needed = known[name].needs
        if needed and not found.get(needed):
            raise EndpointError(f"{url.text!r}: option {name!r} is of use with {needed!r} only")
    for name, option in known.items():
        if option.required and name not in found:
            raise EndpointError(f"{url.text!r}: option {name!r} is missing; it is {option.accepts}")
    return found


def choice(*values: str) -> Option:
    def read(value: str) -> str:
        if value not in values:
            raise ValueError
        return value

    return Option(read, " or ".join(values))


def flag() -> Option:
    """On when it is there; ``=yes`` and ``=no`` say so."""
    spoken = choice("yes", "no")
    return Option(lambda value: not value or spoken.read(value) == "yes", spoken.accepts)


def seconds() -> Option:
    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or not float(value):
            raise ValueError
        return float(value)

    return Option(read, "a number of seconds above 0")


def key() -> Option:
    """A byte as it is typed (``^]``), or as a number (``0x1d``); or ``none``."""

    def read(value: str) -> bytes | None:
        if value == "none":
            return None
        if re.fullmatch(r"\^[@-_a-z?]", value):
            return bytes([ord(value[1].upper()) ^ 0x40])
        if not re.fullmatch(r"0x[0-9a-fA-F]{1,2}", value):
            raise ValueError
        return bytes([int(value, 16)])

    return Option(read, "a key, as ^] or 0x1d, or none")


def whole(low: int, high: int) -> Option:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return Option(read, f"a whole number from {low} to {high}")


def file(what: str) -> Option:
    """The path of a file with *what*, in PEM form; nobody looks at it here."""
    return Option(_something, f"the path of a PEM file with {what}")


def directory() -> Option:
    """The path of a directory; nobody looks at it here."""
    return Option(_something, "the path of a directory")


def _something(value: str) -> str:
    if not value:
        raise ValueError
    return value


def window() -> Option:
    """The size of a terminal's window."""

    def read(value: str) -> tuple[int, int]:
        found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)
        if found is None:
            raise ValueError
        rows, columns = int(found[1]), int(found[2])
        if not (0 < rows < 65536 and 0 < columns < 65536):
            raise ValueError
        return rows, columns

    return Option(read, "rows and columns of 1 to 65535, as in 24x80")


def host_name() -> Option:
    def read(value: str) -> str:
        if not value:
            raise ValueError
        value.encode("idna")
        return value

    return Option(read, "a host name")


def group() -> Option:
    """The address of a multicast group."""

    def read(value: str) -> str:
        if not ipaddress.ip_address(value.partition("%")[0]).is_multicast:
            raise ValueError
        return value

    return Option(read, "a multicast address, as 239.1.2.3 or ff15::7")


def name() -> Option:
    def read(value: str) -> str:
        if not re.fullmatch(r"[^/\s]{1,63}", value):
            raise ValueError
        return value

    return Option(read, "the name of an interface, or its address")


def _list(read: Callable[[str], Any], accepts: str) -> Option:
    return Option(lambda value: [read(item) for item in value.split(",")], accepts)


def interface_addresses() -> Option:
    """Addresses with their prefixes, with commas between them."""
    form = "an address of an interface, as 10.9.0.1/24, or several with commas"
    return _list(lambda item: str(ipaddress.ip_interface(item)), form)


def networks() -> Option:
    """Networks, with commas between them."""
    form = "a network, as 10.0.0.0/8, or several with commas"
    return _list(lambda item: str(ipaddress.ip_network(item)), form)


def hardware_address() -> Option:
    def read(value: str) -> str:
        if not re.fullmatch(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", value):
            raise ValueError
        return value

    return Option(read, "a hardware address, as 02:00:00:00:00:01")


def namespace() -> Option:
    """A network namespace: the id of a process, a path or a name."""

    def read(value: str) -> int | str:
        if not value:
            raise ValueError
        return int(value) if re.fullmatch(r"[1-9][0-9]{0,9}", value) else value

    return Option(read, "a network namespace: a path, a name or the id of a process")


def names() -> Option:
    """Patterns of names or paths; nobody looks at them here."""

    def read(value: str) -> str:
        if not all(value.split(",")):
            raise ValueError
        return value

    return Option(read, "names or patterns with commas between them, as in .git,*.tmp")


def permissions() -> Option:
    def read(value: str) -> int:
        if not re.fullmatch(r"0?[0-7]{3}", value):
            raise ValueError
        return int(value, 8)

    return Option(read, "three octal digits, as in 660")
