"""What waits to be written: against plain bytes, and with the copies counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtransport._core.queues import OFFER_BYTES, OFFER_PIECES, SMALL, ByteQueue, PacketQueue, SealedQueue

SIZES = st.sampled_from(
    [1, 2, 63, 64, 1000, SMALL - 1, SMALL, SMALL + 1, 9000, OFFER_BYTES // 4, OFFER_BYTES]
)


def pattern(start: int, size: int) -> bytes:
    """*size* bytes of a stream in which no offset looks like its neighbours."""
    period = bytes(range(251))
    start %= 251
    return (period * (size // 251 + 2))[start : start + size]


def parts(offer) -> list:
    return offer if isinstance(offer, list) else [offer]


def root(buffer):
    return buffer.obj if isinstance(buffer, memoryview) else buffer


STEP = st.one_of(
    st.tuples(st.just("bytes"), SIZES),
    st.tuples(st.just("view"), SIZES),
    st.tuples(st.just("many"), st.integers(1, 200)),
    st.tuples(st.just("offer"), st.floats(0, 1)),
    st.tuples(st.just("byte"), st.just(1)),
    st.tuples(st.just("take"), st.just(0)),
)


@given(st.lists(STEP, max_size=40))
def test_any_interleaving_keeps_every_byte_in_order(steps):
    queue, model, written = ByteQueue(), bytearray(), 0
    for what, amount in steps:
        if what == "bytes":
            queue.append(pattern(written, amount))
            model += pattern(written, amount)
            written += amount
        elif what == "view":
            queue.append(memoryview(pattern(written, amount + 5))[5:])
            model += pattern(written + 5, amount)
            written += amount + 5
        elif what == "many":
            for _ in range(amount):
                queue.append(pattern(written, 64))
                model += pattern(written, 64)
                written += 64
        elif what == "take":
            assert queue.take() == bytes(model)
            model.clear()
        elif model:
            offered = b"".join(parts(queue.offer()))
            assert model.startswith(offered)
            assert offered
            count = min(1, len(offered)) if what == "byte" else int(len(offered) * amount)
            queue.advance(count)
            del model[:count]
        assert queue.size == len(model) == sum(map(len, queue.pieces))
        assert all(len(piece) for piece in queue.pieces)
    assert queue.take() == bytes(model)
    assert (queue.size, len(queue.pieces)) == (0, 0)


@given(st.lists(SIZES, min_size=1, max_size=100))
def test_an_offer_is_never_empty_and_never_without_end(sizes):
    queue = ByteQueue()
    for size in sizes:
        queue.append(bytes(size))
    offer = parts(queue.offer())
    assert len(offer) <= OFFER_PIECES
    total = sum(map(len, offer))
    # It stops with the piece that fills it.
    assert total <= OFFER_BYTES + max(sizes)
    assert total == queue.size or total >= OFFER_BYTES or len(offer) == OFFER_PIECES
    assert queue.size == sum(sizes)


def test_room_counts_what_is_taken_from_it_and_a_further_piece_revokes_it():
    queue = ByteQueue()
    queue.append(b"x" * 10)
    queue.grant(100)
    assert (queue.size, queue.room) == (10, 100)
    queue.pieces.append(b"y" * 30)  # as a hot path does
    queue.room -= 30
    assert queue.size == 40
    queue.append(b"z" * 5)
    assert (queue.size, queue.room) == (45, 0)
    assert queue.take() == b"x" * 10 + b"y" * 30 + b"z" * 5


def test_one_piece_is_offered_as_it_is():
    queue, piece = ByteQueue(), b"x" * 100
    queue.append(piece)
    assert queue.offer() is piece


def test_small_pieces_are_joined_and_large_ones_go_out_as_they_are():
    queue = ByteQueue()
    for piece in (b"a" * 64, b"b" * 64, b"c" * 64):
        queue.append(piece)
    assert queue.offer() == b"a" * 64 + b"b" * 64 + b"c" * 64
    large = [bytes(SMALL * 4) for _ in range(5)]
    queue = ByteQueue()
    for piece in large:
        queue.append(piece)
    assert all(a is b for a, b in zip(queue.offer(), large, strict=True))


def test_a_small_piece_between_large_ones_keeps_its_place():
    queue = ByteQueue()
    pieces = [b"A" * SMALL * 2, b"b", b"c", b"D" * SMALL * 2, b"e"]
    for piece in pieces:
        queue.append(piece)
    assert b"".join(parts(queue.offer())) == b"".join(pieces)


class Copies:
    """Counts the bytes that a queue copies: those of each buffer that it offers and was not given."""

    def __init__(self) -> None:
        self.known: dict[int, object] = {}
        self.bytes = 0

    def given(self, piece: bytes) -> bytes:
        self.known[id(piece)] = piece
        return piece

    def look(self, offer) -> None:
        for buffer in parts(offer):
            source = root(buffer)
            if id(source) not in self.known:
                self.known[id(source)] = source
                self.bytes += len(source)


def test_one_mebibyte_byte_by_byte_copies_nothing():
    queue, piece = ByteQueue(), pattern(0, 1 << 20)
    queue.append(piece)
    for offset in range(1 << 20):
        if offset % 65536 == 0:
            assert root(queue.offer()) is piece
        queue.advance(1)
    assert queue.size == 0


@pytest.mark.parametrize("size", [10, 64, 1000, SMALL - 1, SMALL, SMALL + 1, 5000, 20000])
def test_pieces_taken_a_few_bytes_at_a_time_are_copied_a_bounded_number_of_times(size):
    queue, copies, total = ByteQueue(), Copies(), 0
    while total < 100_000:
        queue.append(copies.given(pattern(total, size)))
        total += size
    done = 0
    while queue.size:
        offer = queue.offer()
        copies.look(offer)
        first = bytes(parts(offer)[0][:7])
        assert first == pattern(done, len(first))
        queue.advance(len(first))
        done += len(first)
    assert done == total
    assert copies.bytes <= 2 * total


def test_a_hundred_thousand_small_pieces_are_each_joined_once():
    queue, copies = ByteQueue(), Copies()
    for number in range(100_000):
        queue.append(pattern(number * 64, 64))
    done = 0
    while queue.size:
        offer = queue.offer()
        copies.look(offer)
        size = sum(map(len, parts(offer)))
        taken = min(size, 30_000)  # a short write
        queue.advance(taken)
        done += taken
    assert done == 6_400_000
    assert copies.bytes <= 2 * done


def test_a_writer_that_keeps_adding_to_a_slow_reader_does_not_copy_the_queue_again_and_again():
    queue, copies, done, given = ByteQueue(), Copies(), 0, 0
    for number in range(20_000):
        queue.append(pattern(number * 64, 64))
        given += 64
        if number % 8 == 0:
            offer = queue.offer()
            copies.look(offer)
            taken = min(100, sum(map(len, parts(offer))))
            queue.advance(taken)
            done += taken
    assert queue.size == given - done
    assert copies.bytes <= 20 * SMALL * 2500  # bounded per offer, however long the queue


def test_advance_over_many_pieces_at_once():
    queue = ByteQueue()
    for number in range(1000):
        queue.append(bytes([number % 251]) * 10)
    queue.advance(9_995)
    assert queue.size == 5
    assert queue.take() == bytes([999 % 251]) * 5


def test_packets_keep_their_boundaries_and_addresses():
    queue = PacketQueue()
    packets = [(b"one", None), (b"", ("host", 1)), (b"three", "path")]
    for data, addr in packets:
        queue.append(data, addr)
    assert len(queue) == 3
    assert queue.peek() == packets[0]
    assert [queue.pop() for _ in range(3)] == packets
    assert (len(queue), queue.size) == (0, 0)


def test_an_empty_packet_counts_so_that_a_flood_of_them_is_held_back():
    queue = PacketQueue()
    for _ in range(1000):
        queue.append(b"")
    assert queue.size == 1000


def test_the_short_way_past_a_queue_of_packets_closes_when_one_has_to_wait():
    queue = PacketQueue()
    assert queue.room == 0
    queue.grant(1501)
    assert queue.room == 1501
    queue.append(b"first")
    assert queue.room == 0
    queue.pop()
    assert queue.room == 0
    queue.grant(1501)
    queue.grant(0)
    assert queue.room == 0


@given(st.lists(st.none() | st.binary(max_size=20), max_size=60))
def test_packets_against_a_plain_list(story):
    queue, model = PacketQueue(), []
    for data in story:
        if data is not None:
            queue.append(data, len(model))
            model.append((data, len(model)))
        elif model:
            assert queue.peek() == model[0]
            assert queue.pop() == model.pop(0)
        assert queue.size == sum(len(data) or 1 for data, _ in model)
        assert len(queue) == len(model)
    assert queue.take() == model
    assert (queue.size, len(queue), queue.take()) == (0, 0, [])


def test_clear_forgets_everything():
    for queue in (ByteQueue(), PacketQueue()):
        queue.append(b"data")
        queue.clear()
        assert queue.size == 0
        assert not queue.take()


# -- sealed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(), (b"one",), (b"one", b"two")])
def test_a_sealed_queue_takes_nothing_gives_everything_and_never_looks_empty(pieces):
    queue = ByteQueue()
    for piece in pieces:
        queue.append(piece)
    queue.grant(1000)
    sealed = SealedQueue(queue)
    sealed.grant(1000)
    assert sealed.room == 0
    taken = b""
    while sealed.size:
        assert sealed.pieces
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            sealed.append(b"x")
        taken += bytes(parts(sealed.offer())[0][:1])
        sealed.advance(1)
    assert taken == b"".join(pieces)
    assert sealed.pieces
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        sealed.append(b"x")
    assert sealed.take() == b""


@pytest.mark.parametrize("taken", [0, 2, 3, 6])
def test_a_queue_that_is_opened_again_goes_on_with_what_is_left(taken):
    queue = ByteQueue()
    queue.append(b"one")
    queue.append(b"two")
    queue.grant(100)
    sealed = SealedQueue(queue)
    sealed.advance(taken)
    assert sealed.opened() is queue
    assert (queue.size, queue.room) == (6 - taken, 0)
    queue.append(b"three")
    assert queue.take() == b"onetwothree"[taken:]


def test_what_is_dropped_while_sealed_is_gone_from_the_queue():
    queue = ByteQueue()
    queue.append(b"one")
    sealed = SealedQueue(queue)
    sealed.clear()
    assert sealed.size == 0
    assert sealed.pieces
    assert sealed.opened().take() == b""
