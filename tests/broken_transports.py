"""Transports that are broken on purpose, each in one way, to prove that the contract kit sees it.

They meddle only from outside, with the methods that callers call and the callbacks that the protocol
gets, so that they stay broken in the same way whatever the core looks like.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import warnings
from functools import partial

from fdtransport._core.packet import PacketTransport
from fdtransport._core.stream import StreamTransport

#: Which promises (numbers of the contract) each class breaks, and on which kind of descriptor to look.
CASES: list[tuple[type, set[int], str]] = []

#: Descriptors that were leaked on purpose; the test closes them.
LEAKED: list[int] = []

CALLBACKS = (
    "connection_made", "connection_lost", "data_received", "buffer_updated", "eof_received",
    "pause_writing", "resume_writing", "datagram_received", "error_received",
)  # fmt: skip


def breaks(*numbers: int, on: str = "socket_pair"):
    def enter(broken: type) -> type:
        CASES.append((broken, set(numbers), on))
        return broken

    return enter


class Meddling:
    """Calls ``on_NAME(original, *args)`` in place of the protocol's callback NAME, where there is one."""

    def __init__(self, loop, file, protocol, *args, **kwargs):
        self._real = protocol
        for name in CALLBACKS:
            meddle, original = getattr(self, f"on_{name}", None), getattr(protocol, name, None)
            if meddle is not None and original is not None:
                setattr(protocol, name, partial(meddle, original))
        super().__init__(loop, file, protocol, *args, **kwargs)

    @property
    def loop(self):
        return asyncio.get_running_loop()


class Stream(Meddling, StreamTransport):
    """Meddles with nothing: must keep every promise that the broken ones break."""


class Packet(Meddling, PacketTransport):
    pass


# Life


@breaks(1)
class HelperReturnsBeforeConnectionMade(Stream):
    def on_connection_made(self, original, transport):
        self.loop.call_later(0.01, original, transport)


@breaks(2)
class DataBeforeConnectionMade(Stream):
    def on_connection_made(self, original, transport):
        self.loop.call_later(0.01, original, transport)


@breaks(2)
class CallbackAfterTheLoss(Stream):
    def on_connection_lost(self, original, exc):
        original(exc)
        self.loop.call_soon(self._real.data_received, b"late")


@breaks(2)
class FlowCallbackInsideConnectionMade(Stream):
    def on_connection_made(self, original, transport):
        self._real.early = True
        original(transport)

    def write(self, data):
        if len(data) > 1 << 20:
            self._real.pause_writing()
        super().write(data)


@breaks(3)
class DoubleLoss(Stream):
    def on_connection_lost(self, original, exc):
        original(exc)
        original(exc)


@breaks(3)
class LossNeverTold(Stream):
    def on_connection_lost(self, original, exc):
        pass


@breaks(3)
class LossInsideClose(Stream):
    def close(self):
        super().close()
        self._real.connection_lost(None)

    def on_connection_lost(self, original, exc):
        if not self._real.lost:
            original(exc)


@breaks(3)
class DescriptorLeaked(Stream):
    def on_connection_lost(self, original, exc):
        LEAKED.append(os.dup(self.fileno()))
        original(exc)


@breaks(3)
class DescriptorClosedBeforeTheLossIsTold(Stream):
    def on_connection_lost(self, original, exc):
        os.close(self.fileno())
        original(exc)


@breaks(4)
class LostErrno(Stream):
    def on_connection_lost(self, original, exc):
        original(OSError(str(exc)) if exc is not None else None)


@breaks(4)
class CloseTellsAnError(Stream):
    def on_connection_lost(self, original, exc):
        original(exc or ConnectionAbortedError())


@breaks(4)
class CloseReasonAlwaysLocal(Stream):
    @property
    def close_reason(self):
        return "LOCAL" if super().close_reason else None


@breaks(5)
class BufferDroppedAtClose(Stream):
    def close(self):
        self.abort()


@breaks(5)
class AbortThatFlushes(Stream):
    def abort(self, reset=False):
        self.close()


@breaks(5)
class ReadsOnAfterClose(Stream):
    def close(self):
        if not self.is_closing():
            self.loop.call_soon(self._real.data_received, b"after close")
        super().close()


@breaks(6)
class WriteAfterCloseDropped(Stream):
    def write(self, data):
        if not self.is_closing():
            super().write(data)


@breaks(7)
class AcloseUnbounded(Stream):
    async def aclose(self, timeout=None):
        await super().aclose()


@breaks(8, on="tcp_drop_in")
class AbortWithoutReset(Stream):
    def abort(self, reset=False):
        super().abort()


@breaks(9)
class ThreadLeftBehindAtExit(Stream):
    def __del__(self):
        if self.fileno() >= 0:
            LEAKED.append(os.dup(self.fileno()))
        super().__del__()


@breaks(10)
class HoldsItsProtocol(Stream):
    pass  # its own reference is enough


@breaks(10)
class ForgetsExtraInfo(Stream):
    def get_extra_info(self, name, default=None):
        return None if name == "no such name" else super().get_extra_info(name, default)


@breaks(11)
class NoResourceWarning(Stream):
    def __del__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            super().__del__()


@breaks(11)
class ReprRaises(Stream):
    def __repr__(self):
        return f"<{self._real.transport.fileno()}>"


# Errors and contexts


@breaks(12)
class ExceptionSwallowed(Stream):
    def on_data_received(self, original, data):
        try:
            original(data)
        except Exception:
            pass


@breaks(12)
class ExceptionReportedTwice(Stream):
    def on_data_received(self, original, data):
        try:
            original(data)
        except Exception as exc:
            self.loop.call_exception_handler({"message": "once more", "exception": exc})
            raise


@breaks(12)
class ExceptionInConnectionMadeEndsIt(Stream):
    def on_connection_made(self, original, transport):
        try:
            original(transport)
        except Exception:
            self.abort()
            raise


@breaks(12)
class SystemExitSwallowed(Stream):
    def on_data_received(self, original, data):
        try:
            original(data)
        except SystemExit:
            pass


@breaks(13)
class ContextLeakOnResume(Stream):
    context = None

    def resume_reading(self):
        self.context = contextvars.copy_context()
        super().resume_reading()

    def on_data_received(self, original, data):
        self.context.run(original, data) if self.context else original(data)


@breaks(13)
class FlowCallbacksInTheCallersContext(Stream):
    context = None

    def write(self, data):
        self.context = contextvars.copy_context()
        super().write(data)

    def on_pause_writing(self, original):
        self.context.run(original)


# Reading


@breaks(15)
class NoPause(Stream):
    fake = False

    def pause_reading(self):
        self.fake = True

    def resume_reading(self):
        self.fake = False

    def is_reading(self):
        return super().is_reading() and not self.fake


@breaks(15)
class NoResume(Stream):
    def resume_reading(self):
        pass


@breaks(15)
class PauseForgottenInConnectionMade(Stream):
    def on_connection_made(self, original, transport):
        original(transport)
        self.resume_reading()


@breaks(16, on="write_pipe")
class PausesWithoutAReadSide(Stream):
    def pause_reading(self):
        pass


@breaks(16)
class IsReadingWhilePaused(Stream):
    def is_reading(self):
        return True


@breaks(17)
class AnswerToEofIgnored(Stream):
    def on_eof_received(self, original):
        original()
        return False


@breaks(17)
class EofAlwaysKeepsOpen(Stream):
    def on_eof_received(self, original):
        original()
        return True


@breaks(17)
class EofToldTwice(Stream):
    ended = False

    def on_eof_received(self, original):
        self.ended = True
        return original()

    def resume_reading(self):
        super().resume_reading()
        if self.ended and not self.is_closing():
            self._real.eof_received()


@breaks(18)
class DataLostAtTheEnd(Stream):
    def on_data_received(self, original, data):
        if not self.hung_up:
            original(data)


@breaks(19)
class BufferedProtocolIgnored(Stream):
    def on_buffer_updated(self, original, nbytes):
        pass


@breaks(19)
class SetProtocolIgnored(Stream):
    def set_protocol(self, protocol):
        pass


@breaks(20)
class StarvesTheLoop(Stream):
    def on_data_received(self, original, data):
        original(data)
        while True:
            try:
                original(os.read(self.fileno(), 65536))
            except BlockingIOError:
                return


@breaks(21)
class BlindWhilePaused(Stream):
    @property
    def hung_up(self):
        return self.is_reading() and super().hung_up


@breaks(22)
class SpinsAfterHangUp(Stream):
    spinning = False

    def on_eof_received(self, original):
        self.spinning = True
        self.loop.call_soon(self.loop.add_reader, self.fileno(), lambda: None)
        return original()

    def on_connection_lost(self, original, exc):
        if self.spinning:
            self.loop.remove_reader(self.fileno())
        original(exc)


@breaks(22)
class PollsByTimer(Stream):
    def on_connection_made(self, original, transport):
        original(transport)
        self.tick()

    def tick(self):
        if not self.is_closing():
            asyncio.get_running_loop().call_later(0.02, self.tick)
