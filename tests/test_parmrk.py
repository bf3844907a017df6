"""Marked bytes, taken apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fdtransport._core.parmrk import Decoder, LineError

#: What comes over a line: bytes as they should be, damaged characters, breaks.
EVENTS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=8).map(lambda data: ("bytes", data)),
        st.integers(1, 255).map(lambda byte: ("damaged", bytes([byte]))),
        st.just(("break", b"")),
    ),
    max_size=30,
)


def marked(events: list[tuple[str, bytes]]) -> bytes:
    """As the kernel would mark it."""
    how = {"bytes": lambda data: data.replace(b"\xff", b"\xff\xff"), "damaged": lambda data: b"\xff\0" + data}
    return b"".join(how.get(kind, lambda _: b"\xff\0\0")(data) for kind, data in events)


@given(EVENTS, st.lists(st.integers(1, 7), min_size=1, max_size=50))
def test_what_was_marked_comes_out_again_however_it_is_cut(events, sizes) -> None:
    stream, decoder = marked(events), Decoder()
    data, errors = b"", []
    while stream:
        size = sizes[len(stream) % len(sizes)]
        piece, stream = stream[:size], stream[size:]
        plain, found = decoder.decode(piece)
        data += plain
        errors += found
    assert data == b"".join(data for _, data in events)
    assert decoder.offset == len(data)
    expected, offset = [], 0
    for kind, part in events:
        if kind != "bytes":
            expected.append(LineError(kind, offset, part[0] if part else None))
        offset += len(part)
    assert errors == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_and_none_is_held_back_but_a_mark_that_is_cut(stream: bytes) -> None:
    decoder = Decoder()
    data, errors = decoder.decode(stream)
    rest, more = decoder.decode(b"\xff\0A")  # which ends any mark that was cut
    assert len(data) + len(rest) + 3 * len(errors + more) >= len(stream)
    assert all(0 <= error.offset <= decoder.offset for error in errors + more)


def test_what_is_no_mark_is_taken_as_it_is() -> None:
    assert Decoder().decode(b"a\xffb") == (b"a\xffb", [])
    decoder = Decoder()
    assert decoder.decode(b"a\xff") == (b"a", [])
    assert decoder.decode(b"b") == (b"\xffb", [])
