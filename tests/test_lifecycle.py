"""The life of a transport, as a table: every state with every event, and random lives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtransport._core import lifecycle
from fdtransport._core.lifecycle import TABLE, Action, CloseReason, Event, State, reason_of

STARTS = (State.OPEN, State.READ_ONLY, State.WRITE_ONLY)
EDGES = [(old, event, *TABLE[old][event]) for old in State for event in Event]
MOVES = [edge for edge in EDGES if edge[0] is not edge[2]]
LIVING = [state for state in State if state not in (State.LOSING, State.CLOSED)]
#: What the transport does by itself, sooner or later, in each state that is on its way out.
INEVITABLE = (Event.FLUSHED, Event.DRAINED, Event.TURN)


def live(start: State, events: tuple[Event, ...] | list[Event]) -> tuple[State, list[Action]]:
    state, done = start, []
    for event in events:
        state, actions = TABLE[state][event]
        done.extend(actions)
    return state, done


def test_every_state_answers_every_event():
    assert set(TABLE) == set(State)
    for state in State:
        assert set(TABLE[state]) == set(Event)


def test_a_pair_that_is_not_listed_changes_nothing():
    for old, event, new, actions in EDGES:
        if event not in lifecycle._EDGES[old]:
            assert (new, actions) == (old, ())
        else:
            assert new is not old, f"{old} x {event} is listed and leads nowhere"


def test_the_documentation_names_every_state():
    for state in State:
        assert f"    {state.name} " in (lifecycle.__doc__ or "")


def test_each_state_is_reached_from_a_new_transport():
    reached, todo = set(), list(STARTS)
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += [new for new, _ in TABLE[state].values()]
    assert reached == set(State)


def test_nothing_leaves_closed():
    assert all(edge == (State.CLOSED, ()) for edge in TABLE[State.CLOSED].values())


def test_the_loss_is_told_on_exactly_the_edges_into_closed():
    for old, _, new, actions in EDGES:
        into_closed = new is State.CLOSED and old is not State.CLOSED
        assert actions.count(Action.TELL_LOST) == into_closed


def test_the_only_way_into_closed_is_a_turn_of_the_loop_after_losing():
    assert [edge[:3] for edge in MOVES if edge[2] is State.CLOSED] == [
        (State.LOSING, Event.TURN, State.CLOSED)
    ]
    assert all(event is Event.TURN for event, edge in TABLE[State.LOSING].items() if edge[1])


def test_every_edge_into_losing_schedules_one_turn_and_no_other_edge_does():
    for old, _, new, actions in EDGES:
        into_losing = new is State.LOSING and old is not State.LOSING
        assert actions.count(Action.SCHEDULE) == into_losing


@pytest.mark.parametrize("event", [Event.ABORT, Event.READ_ERROR], ids=lambda event: event.name.lower())
@pytest.mark.parametrize("state", State, ids=lambda state: state.name.lower())
def test_an_abort_or_a_read_error_ends_every_state(state, event):
    new, actions = TABLE[state][event]
    if state in LIVING:
        assert new is State.LOSING
        assert Action.DROP in actions
    else:
        assert (new, actions) == (state, ())


@pytest.mark.parametrize("state", State, ids=lambda state: state.name.lower())
def test_close_ends_every_state(state):
    after, _ = live(state, (Event.CLOSE, *INEVITABLE, *INEVITABLE))
    assert after is State.CLOSED


@pytest.mark.parametrize("state", LIVING, ids=lambda state: state.name.lower())
def test_close_flushes_whatever_may_still_be_sent(state):
    new, actions = TABLE[state][Event.CLOSE]
    if state.closing and (state.writes or state.flushing):
        assert (new, actions) == (state, ())  # it is flushing already
    elif state.writes or state.flushing:
        assert new.flushing
        assert Action.FLUSH in actions
        assert Action.DROP not in actions
    else:
        assert new is State.LOSING


def test_what_is_over_never_comes_back():
    for old, _, new, _ in MOVES:
        assert old.reads or not new.reads
        assert old.writes or not new.writes
        assert new.closing or not old.closing
        assert new.ended or not old.ended or new.closing


def test_reading_stops_exactly_where_a_state_that_reads_is_left_for_one_that_does_not():
    for old, _, new, actions in MOVES:
        if old.reads and not new.reads:
            assert actions[0] is Action.STOP_READING
        if new.reads:
            assert Action.STOP_READING not in actions


def test_a_state_that_flushes_is_entered_with_a_flush():
    for old, _, new, actions in MOVES:
        if new.flushing:
            assert Action.FLUSH in actions or old.flushing
            assert Action.DROP not in actions


def test_only_a_flushed_queue_ends_the_write_side():
    for old, event, _, actions in EDGES:
        if Action.END_WRITING in actions:
            assert event is Event.FLUSHED
            assert old.ended


def test_a_failed_write_leaves_what_is_readable_to_be_read():
    for old, event, new, actions in MOVES:
        assert (Action.DRAIN in actions) == (new is State.WRITE_FAILED)
        if event is Event.WRITE_ERROR:
            assert Action.DROP in actions
            assert (new is State.WRITE_FAILED) == old.reads
            assert new.closing


def test_a_hang_up_ends_only_what_nobody_reads_and_still_writes():
    for old, event, new, _ in EDGES:
        if event is Event.HANGUP:
            half_open = not old.reads and (old.writes or old.flushing) and not old.closing
            assert new is (State.LOSING if half_open else old)


def test_a_kept_write_side_stays_and_a_refused_one_closes():
    for old, event, new, _ in MOVES:
        if event is Event.EOF_KEEP:
            assert new.closing == (old in (State.READ_ONLY, State.WRITE_FAILED))
            assert new.writes == (old.writes and not new.closing)
        if event is Event.EOF_CLOSE:
            assert new.closing


@pytest.mark.parametrize("start", STARTS, ids=lambda state: state.name.lower())
def test_all_lives_of_four_events_tell_the_loss_at_most_once_and_then_rest(start):
    for events in itertools.product(Event, repeat=4):
        _, done = live(start, events)
        assert done.count(Action.TELL_LOST) <= done.count(Action.SCHEDULE) <= 1
        assert done.count(Action.END_WRITING) <= 1
        if Action.TELL_LOST in done:
            assert done[-1] is Action.TELL_LOST


@given(st.sampled_from(STARTS), st.lists(st.sampled_from(Event), max_size=40))
def test_a_random_life_tells_the_loss_once_and_last(start, events):
    state, done = live(start, events)
    assert done.count(Action.TELL_LOST) == (state is State.CLOSED)
    assert done.count(Action.END_WRITING) <= 1
    assert done.count(Action.DRAIN) <= 1
    end, whole = live(start, [*events, Event.ABORT, Event.TURN])
    assert end is State.CLOSED
    assert whole.count(Action.SCHEDULE) == whole.count(Action.TELL_LOST) == 1
    assert whole[-1] is Action.TELL_LOST


@given(st.sampled_from(STARTS), st.lists(st.sampled_from(Event), max_size=40))
def test_a_random_life_can_always_end_gracefully(start, events):
    state, _ = live(start, [*events, Event.CLOSE, *INEVITABLE, *INEVITABLE])
    assert state is State.CLOSED


FIRST_CAUSES = {
    Event.CLOSE: CloseReason.LOCAL,
    Event.EOF_CLOSE: CloseReason.PEER,
    Event.ABORT: CloseReason.ABORT,
    Event.READ_ERROR: CloseReason.ERROR,
    Event.WRITE_ERROR: CloseReason.ERROR,
}


@pytest.mark.parametrize("event", FIRST_CAUSES, ids=lambda event: event.name.lower())
def test_the_first_cause_is_the_reason(event):
    new, _ = TABLE[State.OPEN][event]
    assert reason_of(event, State.OPEN, new, None) is FIRST_CAUSES[event]


def test_the_reason_of_half_a_life_is_whoever_ended_the_other_half():
    for start, event, reason in [
        (State.READ_ENDED, Event.HANGUP, CloseReason.PEER),
        (State.WRITE_ONLY, Event.HANGUP, CloseReason.PEER),
        (State.WRITE_ONLY, Event.WRITE_EOF, CloseReason.LOCAL),
        (State.WRITE_ENDED, Event.EOF_CLOSE, CloseReason.PEER),
        (State.READ_ONLY, Event.EOF_KEEP, CloseReason.PEER),
        (State.BOTH_ENDED, Event.CLOSE, CloseReason.LOCAL),
    ]:
        assert reason_of(event, start, TABLE[start][event][0], None) is reason


def test_there_is_no_reason_while_the_transport_is_open():
    for old, event, new, _ in EDGES:
        if not new.closing:
            assert reason_of(event, old, new, None) is None


def test_an_event_without_effect_gives_no_new_reason():
    for old, event, new, _ in EDGES:
        if new is old:
            for before in (None, *CloseReason):
                assert reason_of(event, old, new, before) is before


@pytest.mark.parametrize("before", [CloseReason.LOCAL, CloseReason.PEER])
@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Event.ABORT, CloseReason.ABORT),
        (Event.WRITE_ERROR, CloseReason.ERROR),
        (Event.READ_ERROR, CloseReason.ERROR),
        (Event.FLUSHED, None),
    ],
)
def test_cutting_a_flush_short_replaces_the_reason_and_finishing_it_does_not(before, event, reason):
    after = reason_of(event, State.FLUSHING, TABLE[State.FLUSHING][event][0], before)
    assert after is (reason or before)


@given(st.sampled_from(STARTS), st.lists(st.sampled_from(Event), max_size=30))
def test_a_random_life_has_a_reason_from_the_moment_it_is_closing(start, events):
    state, reason = start, None
    for event in events:
        old = state
        state, _ = TABLE[old][event]
        before, reason = reason, reason_of(event, old, state, reason)
        assert (reason is not None) == state.closing
        assert before in (None, reason, CloseReason.LOCAL, CloseReason.PEER)
