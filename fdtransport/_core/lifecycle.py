"""The life of a transport, as a table: state x event -> next state, actions.

No descriptor, no loop. ``connection_lost`` (``Action.TELL_LOST``) stands on exactly the edges into
CLOSED, and every edge into LOSING schedules the turn of the loop that takes it. A pair that the
table does not list changes nothing and does nothing; this is what makes ``close()`` and ``abort()``
idempotent, in any order and at any time.

The states name what each side can still do:

    OPEN           reads and writes
    READ_ONLY      the descriptor has no write side
    WRITE_ONLY     the descriptor has no read side
    READ_ENDED     the peer's end of file was told, and the protocol kept the write side
    WRITE_ENDING   write_eof() was called, what is queued goes out first; still reads
    WRITE_ENDED    the write side has ended; still reads
    BOTH_ENDING    READ_ENDED, and then write_eof()
    BOTH_ENDED     nothing more to move; stays until it is closed, as on asyncio's sockets
    WRITE_FAILED   a write failed; what can still be read is delivered before the loss
    FLUSHING       close() was called, what is queued goes out first
    FLUSHING_EOF   the same after write_eof()
    LOSING         connection_lost will be called at the next turn of the loop
    CLOSED         connection_lost has been called
"""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["TABLE", "Action", "CloseReason", "Event", "State", "reason_of"]


class CloseReason(Enum):
    """Why a transport ended, or is ending."""

    LOCAL = "local"
    """This side called ``close()``."""
    PEER = "peer"
    """The other side ended or hung up."""
    ERROR = "error"
    """The kernel or a callback failed; ``connection_lost`` has the exception."""
    ABORT = "abort"
    """This side called ``abort()``."""


class State(Enum):
    __hash__ = object.__hash__  # Enum has one that is a Python function; the table is looked up often

    # reads, writes: data may still pass; flushing: the queue's last byte moves the life on;
    # closing: what is_closing() answers; ended: write() raises because of write_eof().
    OPEN = auto(), "reads writes"
    READ_ONLY = auto(), "reads"
    WRITE_ONLY = auto(), "writes"
    READ_ENDED = auto(), "writes"
    WRITE_ENDING = auto(), "reads flushing ended"
    WRITE_ENDED = auto(), "reads ended"
    BOTH_ENDING = auto(), "flushing ended"
    BOTH_ENDED = auto(), "ended"
    WRITE_FAILED = auto(), "reads closing"
    FLUSHING = auto(), "writes flushing closing"
    FLUSHING_EOF = auto(), "flushing closing ended"
    LOSING = auto(), "closing"
    CLOSED = auto(), "closing"

    def __init__(self, _number: int, traits: str) -> None:
        words = traits.split()
        self.reads = "reads" in words
        self.writes = "writes" in words
        self.flushing = "flushing" in words
        self.closing = "closing" in words
        self.ended = "ended" in words
        plain = self.name.lower().replace("_", " ")
        known = "closing" if self.closing else "open"
        #: For people, and in the words of asyncio's transports where those have one.
        self.label = plain if plain in ("open", "closed") else f"{known} ({plain})"


class Event(Enum):
    __hash__ = object.__hash__  # Enum has one that is a Python function; the table is looked up often

    EOF_KEEP = auto()  # end of file, and eof_received() was true
    EOF_CLOSE = auto()  # end of file, and eof_received() was not
    WRITE_EOF = auto()  # write_eof() was called
    FLUSHED = auto()  # the queue is empty and no producer is registered
    CLOSE = auto()  # close() was called
    ABORT = auto()  # abort() was called
    READ_ERROR = auto()  # reading, a callback or the poller failed
    WRITE_ERROR = auto()  # writing failed
    DRAINED = auto()  # after WRITE_ERROR: nothing more is readable
    HANGUP = auto()  # the hang-up watch saw the other side go
    TURN = auto()  # the turn of the loop that LOSING waits for


class Action(Enum):
    __hash__ = object.__hash__  # Enum has one that is a Python function; the table is looked up often

    STOP_READING = auto()
    FLUSH = auto()  # offer the queue to the kernel; FLUSHED follows when it is empty
    END_WRITING = auto()  # shut the write side down
    DROP = auto()  # forget the queue
    DRAIN = auto()  # deliver what is readable; DRAINED follows
    SCHEDULE = auto()  # have TURN come from the loop
    TELL_LOST = auto()


_S, _E, _A = State, Event, Action
_Edge = tuple[State, tuple[Action, ...]]

_LOSE: _Edge = (_S.LOSING, (_A.STOP_READING, _A.DROP, _A.SCHEDULE))
_CLOSE: _Edge = (_S.FLUSHING, (_A.STOP_READING, _A.FLUSH))
_CLOSE_EOF: _Edge = (_S.FLUSHING_EOF, (_A.STOP_READING, _A.FLUSH))
_FAIL: _Edge = (_S.WRITE_FAILED, (_A.DROP, _A.DRAIN))
_ENDS = {_E.ABORT: _LOSE, _E.READ_ERROR: _LOSE}

_EDGES: dict[State, dict[Event, _Edge]] = {
    _S.OPEN: {
        **_ENDS,
        _E.EOF_KEEP: (_S.READ_ENDED, (_A.STOP_READING,)),
        _E.EOF_CLOSE: _CLOSE,
        _E.WRITE_EOF: (_S.WRITE_ENDING, (_A.FLUSH,)),
        _E.CLOSE: _CLOSE,
        _E.WRITE_ERROR: _FAIL,
    },
    # No write side that a true eof_received() could keep.
    _S.READ_ONLY: {**_ENDS, _E.EOF_KEEP: _LOSE, _E.EOF_CLOSE: _LOSE, _E.CLOSE: _LOSE},
    # Ending the only side ends the transport.
    _S.WRITE_ONLY: {
        **_ENDS,
        _E.WRITE_EOF: _CLOSE_EOF,
        _E.CLOSE: _CLOSE,
        _E.WRITE_ERROR: _LOSE,
        _E.HANGUP: _LOSE,
    },
    # Nobody reads here any more, so a hang-up has no other way to be told.
    _S.READ_ENDED: {
        **_ENDS,
        _E.WRITE_EOF: (_S.BOTH_ENDING, (_A.FLUSH,)),
        _E.CLOSE: _CLOSE,
        _E.WRITE_ERROR: _LOSE,
        _E.HANGUP: _LOSE,
    },
    _S.WRITE_ENDING: {
        **_ENDS,
        _E.EOF_KEEP: (_S.BOTH_ENDING, (_A.STOP_READING,)),
        _E.EOF_CLOSE: _CLOSE_EOF,
        _E.FLUSHED: (_S.WRITE_ENDED, (_A.END_WRITING,)),
        _E.CLOSE: _CLOSE_EOF,
        _E.WRITE_ERROR: _FAIL,
    },
    _S.WRITE_ENDED: {
        **_ENDS,
        _E.EOF_KEEP: (_S.BOTH_ENDED, (_A.STOP_READING,)),
        _E.EOF_CLOSE: _LOSE,
        _E.CLOSE: _LOSE,
    },
    _S.BOTH_ENDING: {
        **_ENDS,
        _E.FLUSHED: (_S.BOTH_ENDED, (_A.END_WRITING,)),
        _E.CLOSE: _CLOSE_EOF,
        _E.WRITE_ERROR: _LOSE,
        _E.HANGUP: _LOSE,
    },
    _S.BOTH_ENDED: {**_ENDS, _E.CLOSE: _LOSE},
    _S.WRITE_FAILED: {
        **_ENDS,
        _E.EOF_KEEP: _LOSE,
        _E.EOF_CLOSE: _LOSE,
        _E.CLOSE: _LOSE,
        _E.DRAINED: _LOSE,
    },
    _S.FLUSHING: {**_ENDS, _E.FLUSHED: _LOSE, _E.WRITE_ERROR: _LOSE},
    _S.FLUSHING_EOF: {
        **_ENDS,
        _E.FLUSHED: (_S.LOSING, (_A.END_WRITING, _A.SCHEDULE)),
        _E.WRITE_ERROR: _LOSE,
    },
    _S.LOSING: {_E.TURN: (_S.CLOSED, (_A.TELL_LOST,))},
    _S.CLOSED: {},
}

TABLE: dict[State, dict[Event, _Edge]] = {
    state: {event: _EDGES[state].get(event, (state, ())) for event in Event} for state in State
}

_REASONS = {
    Event.EOF_KEEP: CloseReason.PEER,
    Event.EOF_CLOSE: CloseReason.PEER,
    Event.HANGUP: CloseReason.PEER,
    Event.WRITE_EOF: CloseReason.LOCAL,
    Event.CLOSE: CloseReason.LOCAL,
    Event.ABORT: CloseReason.ABORT,
    Event.READ_ERROR: CloseReason.ERROR,
    Event.WRITE_ERROR: CloseReason.ERROR,
}


def reason_of(event: Event, old: State, new: State, before: CloseReason | None) -> CloseReason | None:
    """The close reason after *event* led from *old* to *new*, given the one *before*.

    The first cause stands, unless an abort or an error cut the flush that it had begun short.
    """
    if not new.closing or new is old:
        return before
    if before is None or (before in (CloseReason.LOCAL, CloseReason.PEER) and event in _CUTS):
        return _REASONS.get(event, before)
    return before


_CUTS = (Event.ABORT, Event.READ_ERROR, Event.WRITE_ERROR)
