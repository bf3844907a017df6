"""Water marks: asyncio's own limits, strict alternation, and the one registered producer."""

from __future__ import annotations

import asyncio
from asyncio.transports import _FlowControlMixin
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtransport._core.flow import DEFAULT_HIGH, Flow, check_limits

LIMITS = (None, -1, 0, 1, 2, 3, 4, 5, 100, 16384, 65536, 65537, 1 << 30, 0.0, 2.5, True)


def outcome(function, *args):
    try:
        return function(*args)
    except Exception as exc:
        return type(exc)


class Empty(_FlowControlMixin):
    def get_write_buffer_size(self):
        return 0


def asyncio_limits(high, low):
    transport = Empty(loop=Mock(spec=asyncio.AbstractEventLoop))
    transport.set_write_buffer_limits(high, low)
    return transport.get_write_buffer_limits()[::-1]


@pytest.mark.parametrize("high", LIMITS)
def test_limits_are_filled_in_and_refused_exactly_as_asyncio_does(high):
    for low in LIMITS:
        assert outcome(check_limits, high, low) == outcome(asyncio_limits, high, low), (high, low)


@given(st.none() | st.integers(-10, 1 << 20), st.none() | st.integers(-10, 1 << 20))
def test_random_limits_are_those_of_asyncio(high, low):
    assert outcome(check_limits, high, low) == outcome(asyncio_limits, high, low)


def test_the_default_is_64_and_16_kib():
    flow = Flow()
    assert (flow.high, flow.low, flow.hard) == (64 * 1024, 16 * 1024, None)
    assert flow.high == DEFAULT_HIGH


def test_refused_limits_change_nothing():
    flow = Flow()
    flow.set_limits(100, 10, 1000)
    for high, low, hard in [(1, 2, None), (10, -1, None), (100, 10, 99), (None, None, 5)]:
        with pytest.raises(ValueError, match="must be >="):
            flow.set_limits(high, low, hard)
        assert (flow.high, flow.low, flow.hard) == (100, 10, 1000)


def test_new_limits_without_a_hard_one_take_it_away():
    flow = Flow()
    flow.set_limits(100, 10, 100)
    assert flow.over_hard_limit(101)
    assert not flow.over_hard_limit(100)
    flow.set_limits(100, 10, None)
    assert not flow.over_hard_limit(1 << 60)


def test_pause_comes_above_high_and_resume_at_low():
    flow = Flow()
    flow.set_limits(100, 10, None)
    assert [flow.must_pause(size) for size in (0, 100, 101, 101, 1000)] == [False, False, True, False, False]
    assert [flow.must_resume(size) for size in (1000, 101, 11, 10, 0)] == [False, False, False, True, False]


def test_a_high_mark_of_zero_pauses_on_every_byte_and_resumes_when_it_has_gone():
    flow = Flow()
    flow.set_limits(0, None, None)
    assert not flow.must_pause(0)
    assert flow.must_pause(1)
    assert not flow.must_resume(1)
    assert flow.must_resume(0)


SIZES = st.integers(0, 300)
CHANGES = st.tuples(st.integers(0, 200), st.integers(0, 200)).map(sorted)


@given(st.lists(SIZES | CHANGES, max_size=60))
def test_pause_and_resume_alternate_whatever_the_sizes_and_limits(story):
    flow, told = Flow(), []
    for part in story:
        if isinstance(part, int):
            if flow.must_pause(part):
                assert part > flow.high
                told.append("pause")
            if flow.must_resume(part):
                assert part <= flow.low
                told.append("resume")
            if part > flow.high:
                assert flow.paused
            if part <= flow.low:
                assert not flow.paused
        else:
            flow.set_limits(part[1], part[0], None)
    assert told == ["pause", "resume"] * (len(told) // 2) + ["pause"] * (len(told) % 2)
    assert flow.paused == (len(told) % 2 == 1)


def test_a_second_producer_is_refused_and_the_message_names_both():
    flow = Flow()
    first, second = Mock(name="first"), Mock(name="second")
    flow.register(first, True)
    with pytest.raises(RuntimeError) as refusal:
        flow.register(second, True)
    assert repr(first) in str(refusal.value)
    assert repr(second) in str(refusal.value)
    assert flow.producer is first


def test_a_producer_is_either_a_push_or_a_pull_producer():
    flow, producer = Flow(), Mock()
    assert (flow.push, flow.pull) == (None, None)
    flow.register(producer, True)
    assert (flow.push, flow.pull) == (producer, None)
    assert flow.unregister() is producer
    flow.register(producer, False)
    assert (flow.push, flow.pull) == (None, producer)
    assert flow.unregister() is producer
    assert (flow.push, flow.pull, flow.unregister()) == (None, None, None)


def test_flow_itself_calls_no_producer():
    flow, producer = Flow(), Mock()
    flow.register(producer, True)
    flow.must_pause(1 << 20)
    flow.must_resume(0)
    flow.unregister()
    assert producer.mock_calls == []
