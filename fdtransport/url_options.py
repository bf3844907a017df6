"""The options of endpoint strings: what each is read by, and what it accepts, in words.

Pure, as the grammar (``urls``): nobody looks at what a value names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import EndpointError
from .urls import Url, decoded, question_hint

__all__ = [
    "Option",
    "choice",
    "directory",
    "file",
    "flag",
    "group",
    "hardware_address",
    "host_name",
    "interface_addresses",
    "key",
    "name",
    "names",
    "namespace",
    "networks",
    "permissions",
    "read_options",
    "seconds",
    "whole",
    "window",
]


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
            allowed = (", ".join(known) or "none") + question_hint(url)
            raise EndpointError(f"{url.text!r}: unknown option {name!r}; allowed here: {allowed}")
        if name in found:
            raise EndpointError(f"{url.text!r}: option {name!r} is given twice")
        if mode not in option.modes:
            way = "reading" if mode == "r" else "writing"
            raise EndpointError(f"{url.text!r}: option {name!r} is of no use for {way}")
        try:
            found[name] = option.read(decoded(url, value) if given else "")
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
