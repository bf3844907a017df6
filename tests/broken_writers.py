"""More transports that are broken on purpose: writing, producers, descriptors, records."""

from __future__ import annotations

import os

from broken_transports import Packet, Stream, breaks

# Writing


@breaks(23)
class MutableBufferAliased(Stream):
    def write(self, data):
        if isinstance(data, bytearray) and data:
            self.loop.call_soon(super().write, data)
        else:
            super().write(data)


@breaks(23)
class HoldsOnToTheBuffer(Stream):
    def write(self, data):
        super().write(data)
        self.held = memoryview(data)


@breaks(23, 26)
class ViewCountedInItems(Stream):
    def write(self, data):
        super().write(memoryview(data).cast("B")[: len(data)])


@breaks(23)
class TypesCheckedLate(Stream):
    def write(self, data):
        if not self.is_closing():
            super().write(data)


@breaks(24)
class WritelinesWithoutFlowControl(Stream):
    muted = False

    def writelines(self, list_of_data):
        self.muted = True
        super().writelines(list_of_data)
        self.muted = False

    def on_pause_writing(self, original):
        if not self.muted:
            original()

    def on_resume_writing(self, original):
        if self._real.paused:
            original()


@breaks(24)
class WritelinesQueuesBeforeItChecks(Stream):
    def writelines(self, list_of_data):
        for data in list_of_data:
            self.write(data)


@breaks(25)
class OrderLost(Stream):
    def writelines(self, list_of_data):
        super().writelines(reversed(list(list_of_data)))


@breaks(26)
class SizeForgetsTheBacklog(Stream):
    def get_write_buffer_size(self):
        return super().get_write_buffer_size() // 2


@breaks(26)
class LimitsNotValidated(Stream):
    def set_write_buffer_limits(self, high=None, low=None, *, hard=None):
        try:
            super().set_write_buffer_limits(high, low, hard=hard)
        except ValueError:
            pass


@breaks(27)
class WritingNeverPaused(Stream):
    def on_pause_writing(self, original):
        pass


@breaks(27)
class WritingNeverResumed(Stream):
    def on_resume_writing(self, original):
        pass


@breaks(27)
class WritingPausedTwice(Stream):
    def write(self, data):
        super().write(data)
        if self._real.paused and not self.is_closing():
            self._real.pause_writing()


@breaks(28)
class WriteEofDoesNothing(Stream):
    def write_eof(self):
        pass


@breaks(28)
class WriteEofDoesNotFlush(Stream):
    def write_eof(self):
        self.abort()


@breaks(28)
class CannotWriteEofItSays(Stream):
    def can_write_eof(self):
        return False


@breaks(29)
class WriteErrorHidden(Stream):
    def on_connection_lost(self, original, exc):
        original(None)


@breaks(29, on="write_pipe")
class ReaderGoneUnnoticed(Stream):
    def on_connection_lost(self, original, exc):
        if self.is_closing() and self.close_reason.name != "PEER":
            original(exc)


@breaks(30)
class HardLimitIgnored(Stream):
    def set_write_buffer_limits(self, high=None, low=None, *, hard=None):
        super().set_write_buffer_limits(high, low)


@breaks(31)
class FlushedAtOnce(Stream):
    async def flushed(self):
        pass


# Producers


@breaks(32)
class SecondProducerTaken(Stream):
    def register_producer(self, producer, streaming=True):
        self.unregister_producer()
        super().register_producer(producer, streaming)


@breaks(33)
class ProducerOfALostTransportNotStopped(Stream):
    def register_producer(self, producer, streaming=True):
        if not self.is_closing():
            super().register_producer(producer, streaming)


@breaks(34)
class PushProducerNeverPaused(Stream):
    def register_producer(self, producer, streaming=True):
        producer.pause_producing = lambda: None
        super().register_producer(producer, streaming)


@breaks(35)
class PullProducerAskedTwice(Stream):
    def register_producer(self, producer, streaming=True):
        super().register_producer(producer, streaming)
        if not streaming:
            producer.resume_producing()


@breaks(36)
class CloseDoesNotWaitForTheProducer(Stream):
    def close(self):
        self.unregister_producer()
        super().close()


@breaks(36)
class ProducerNotStoppedAtTheLoss(Stream):
    def abort(self, reset=False):
        self.unregister_producer()
        super().abort(reset)


@breaks(37)
class ChainWithoutBackPressure(Stream):
    def pause_producing(self):
        pass


# Descriptors and drop-in


@breaks(42)
class BlockingModeNotPutBack(Stream):
    def on_connection_lost(self, original, exc):
        fd = os.dup(self.fileno())
        original(exc)
        self.loop.call_soon(lambda: (os.set_blocking(fd, False), os.close(fd)))


@breaks(43)
class WritesToANumberThatIsNotItsOwn(Stream):
    number = -1

    def on_connection_made(self, original, transport):
        self.number = self.fileno()
        original(transport)

    def write(self, data):
        if self.fileno() < 0:
            os.write(self.number, data)


@breaks(43)
class ClosesTwice(Stream):
    number = -1

    def on_connection_made(self, original, transport):
        self.number = self.fileno()
        original(transport)

    def close(self):
        if self.fileno() < 0 <= self.number:
            os.close(self.number)
        super().close()


@breaks(45, on="read_pipe")
class ReadOnlyAndSilent(Stream):
    def write(self, data):
        pass


@breaks(46)
class WrongDescriptorTold(Stream):
    def fileno(self):
        return 0


# Records


@breaks(38, on="packet_pair")
class RecordsJoined(Packet):
    def on_datagram_received(self, original, data, addr):
        if self._real.events[1:]:
            _, last = self._real.events.pop()
            data = last + data
        original(data, addr)


@breaks(39, on="packet_pair")
class RecordErrorHidden(Packet):
    def on_error_received(self, original, exc):
        pass


@breaks(39, on="packet_pair")
class RecordErrorEndsIt(Packet):
    def on_error_received(self, original, exc):
        original(exc)
        self.abort()


@breaks(40, on="packet_pair")
class RecordsDroppedWhenFull(Packet):
    def sendto(self, data, addr=None):
        if not self.get_write_buffer_size():
            super().sendto(data, addr)


@breaks(41, on="packet_pair")
class RecordsStarveTheLoop(Packet):
    def on_datagram_received(self, original, data, addr):
        original(data, addr)
        while True:
            try:
                original(os.read(self.fileno(), 65536), addr)
            except BlockingIOError:
                return
