"""Anything that is a file descriptor becomes a first-class asyncio transport."""

from ._core.base import Detached
from ._core.flow import Producer
from ._core.lifecycle import CloseReason
from ._core.packet import PacketTransport
from ._core.stream import StreamTransport
from .errors import (
    BufferLimitError,
    DescriptorInUseError,
    EndpointError,
    TransportError,
    UnpollableFileError,
)
from .fd import connect_fd, connect_packet_fd, open_fd, open_packet_fd
from .packets import PacketStream
from .streams import StreamReader

__all__ = [
    "BufferLimitError",
    "CloseReason",
    "DescriptorInUseError",
    "Detached",
    "EndpointError",
    "PacketStream",
    "PacketTransport",
    "Producer",
    "StreamReader",
    "StreamTransport",
    "TransportError",
    "UnpollableFileError",
    "connect_fd",
    "connect_packet_fd",
    "open_fd",
    "open_packet_fd",
]
