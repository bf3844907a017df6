"""What the loop and the poller are asked for: readiness, hang-ups, and a pause of reading."""

from __future__ import annotations

import errno
import os
import select
import stat

from . import syscalls
from .lifecycle import Event, State
from .readiness import Pump, cannot_be_polled, forgets_after_error, hangup_watch
from .root import Root

__all__ = ["Interest"]


class Interest(Root):
    """See the module's first lines."""

    __slots__ = ()

    # -- registration --------------------------------------------------------------------------

    def _register(self) -> None:
        """Ask for readiness now, so that a refusal is the caller's and not a deaf transport's."""
        try:
            if self._rfd < 0:
                self._watch(self._wfd, reading=False)
                return
            if forgets_after_error(self._loop):
                # uvloop looks at the poller before it runs what is ready, so a reader that was
                # added here could be called before connection_made: _begin adds it. The watch's
                # own epoll accepts or refuses the descriptor meanwhile.
                self._watch(self._rfd, reading=True)
            else:
                self._add_reader()
        except OSError as exc:
            if not cannot_be_polled(exc):
                raise
            fd = self.fileno()
            if stat.S_ISDIR(syscalls.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), fd) from None
            self._cannot_poll(fd)
            pump = Pump(self._loop)
            if self._rfd >= 0:
                self._read_events = pump
                self._add_reader()
            if self._wfd == fd:
                self._write_events = pump

    def _add_reader(self) -> None:
        # The loop runs a callback in a copy of the context that add_reader was called in; going
        # through run() makes it the one context of this transport, whoever resumes reading.
        self._read_events.add_reader(self._rfd, self._context.run, self._reader())
        self._reader_on = True

    def _remove_reader(self) -> None:
        if self._reader_on:
            self._reader_on = False
            self._read_events.remove_reader(self._rfd)

    def _add_writer(self) -> None:
        if not self._writer_on:
            try:
                self._write_events.add_writer(self._wfd, self._context.run, self._writer())
            except OSError as exc:
                if not cannot_be_polled(exc):
                    self._step(Event.WRITE_ERROR, exc)
                    return
                # The write descriptor of a pair is a file (a full disk gives short writes).
                self._write_events = Pump(self._loop)
                self._write_events.add_writer(self._wfd, self._context.run, self._writer())
            self._writer_on = True

    def _remove_writer(self) -> None:
        if self._writer_on:
            self._writer_on = False
            self._write_events.remove_writer(self._wfd)

    # -- hang-up -------------------------------------------------------------------------------

    @property
    def hung_up(self) -> bool:
        """Whether the other side is known to have gone, or to have ended its direction.

        Noticed also while reading is paused and while nobody writes. What it sent before can
        still be read.
        """
        return self._hung_up

    async def wait_hangup(self) -> None:
        """Return when the other side has gone, or when this transport has ended. Cancelling is safe."""
        if self._rfd >= 0 and self._state.reads and not self._hung_up:
            self._watch_quietly(self._rfd, reading=True)
        while not (self._hung_up or self._state is State.CLOSED):
            await self._add_waiter("hangup")

    def _watch(self, fd: int, *, reading: bool) -> None:
        if self._watched != fd:
            self._unwatch()
        if hangup_watch(self._loop).arm(fd, self._on_hangup, reading=reading, more=self._ALSO_WATCHED):
            self._watched = fd

    def _unwatch(self) -> None:
        if self._watched >= 0:
            watched, self._watched = self._watched, -1
            hangup_watch(self._loop).disarm(watched)

    def _watch_quietly(self, fd: int, *, reading: bool) -> None:
        """As ``_watch``, for a transport that lives on when the kernel refuses the watch."""
        if self._watched != fd or not reading:
            try:
                self._watch(fd, reading=reading)
            except OSError:
                pass  # a file, or no memory for one more watch: reading and writing will tell

    def _look_for_hangup(self) -> None:
        """What the watch would tell before long, told now: it holds nobody, and nobody else may, by then."""
        fd = self._rfd if self._state.reads else self._watched
        if fd >= 0:
            asked = select.POLLRDHUP if self._state.reads else 0
            if syscalls.poll_now(fd, asked) & (asked | select.POLLHUP | select.POLLERR):
                self._on_hangup()

    def _on_hangup(self) -> None:
        self._context.run(self._hangup)

    def _hangup(self) -> None:
        self._note_hangup()
        if self._reader_on and forgets_after_error(self._loop):
            self._remove_reader()
            self._read_the_rest()
        if self._queue.size:
            if self._writer_on:
                return  # the write that is waiting will tell, with its errno
            self._flush()
        error = None if self._state.reads else self._pending_error()
        if error is not None:
            self._step(Event.READ_ERROR, error)
        else:
            self._step(Event.HANGUP)

    def _read_again(self) -> None:
        if self._hung_up and forgets_after_error(self._loop):
            self._read_the_rest()
        else:
            self._add_reader()

    def _read_the_rest(self) -> None:
        """Go on reading where the loop's poller has dropped the descriptor."""
        self._add_reader()

    def _note_hangup(self) -> None:
        self._hung_up = True
        self._wake("hangup")

    # -- reading -------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether data may come: not paused, not ended, not closing."""
        return not self._paused and self._state.reads and not self._state.closing

    def pause_reading(self) -> None:
        """No data callback after this returns, until ``resume_reading()``. Idempotent.

        :raises NotImplementedError: on a write-only transport.
        """
        self._check_reads()
        # The poller is asked to stop only if something comes: a pause that ends before that, as
        # in a relay, costs no system call.
        self._paused = True

    def resume_reading(self) -> None:
        """Let data come again. Idempotent.

        :raises NotImplementedError: on a write-only transport.
        """
        self._check_reads()
        if not self._paused:
            return
        self._paused = False
        try:
            if self._state is State.WRITE_FAILED:
                self._drain()
            elif self._state.reads and not self._reader_on:
                self._read_again()
        except OSError as exc:
            self._step(Event.READ_ERROR, exc)

    def _check_reads(self) -> None:
        if self._state is State.WRITE_ONLY:
            raise NotImplementedError(f"{self!r} cannot read: its descriptor is write-only")

    def _readable_but_paused(self) -> None:
        self._remove_reader()
        if not isinstance(self._read_events, Pump):
            self._watch_quietly(self._rfd, reading=True)
