"""Anything that is a file descriptor becomes a first-class asyncio transport."""

from ._core.base import Detached
from ._core.flow import Producer
from ._core.inotify_limits import InotifyLimits
from ._core.inotify_records import InotifyMask
from ._core.lifecycle import CloseReason
from ._core.packet import PacketTransport
from ._core.stream import StreamTransport
from ._core.tls import start_tls
from ._core.watch_tree import Change as WatchEvent
from ._core.watch_tree import Kind as WatchKind
from .activation import ActivationSocket, activation_sockets
from .attach import TerminalTransport, attach_terminal, connect_terminal
from .datagrams import DatagramTransport, create_datagram_endpoint, open_datagram_endpoint
from .endpoints import connect_url, listen_url, open_packet_url, open_url
from .errors import (
    BufferLimitError,
    DescriptorInUseError,
    EndpointError,
    InotifyLimitError,
    OutputLimitError,
    TransportError,
    UnpollableFileError,
)
from .exec import ExecTransport, connect_exec, open_exec
from .fd import connect_fd, connect_packet_fd, open_fd, open_packet_fd
from .fifo import FifoTransport, connect_fifo, open_fifo
from .files import sendfile
from .inotify import InotifyTransport, connect_inotify
from .inotify_events import InotifyEvent, InotifyProtocol, InotifyWatch, WatchEnd
from .link import Link, LinkState, Route
from .loop import EventLoop, new_event_loop
from .packets import PacketStream
from .pipes import PacketPipeTransport, PipeTransport, connect_read_pipe, connect_write_pipe, open_pipe
from .process_streams import Process, create_subprocess_exec, create_subprocess_shell
from .process_transport import ProcessTransport
from .processes import subprocess_exec, subprocess_shell
from .program import ProgramTransport
from .pty import PtyTransport, WindowSize
from .pty_port import PtyPortTransport, TerminalEvent, connect_pty, open_pty
from .pty_process import PtyProcessTransport, open_pty_process, spawn_pty
from .relay import Relay, RelayResult, relay
from .serial import (
    ReconnectingSerial,
    SerialError,
    SerialSettings,
    SerialTransport,
    connect_serial,
    list_ports,
    open_serial,
)
from .sessions import DatagramServer, SessionTransport, create_datagram_server
from .sockets import PeerCredentials, Server, SocketTransport, UnixTransport
from .stdio import StdioTransport, connect_stdio, open_stdio
from .streams import StreamReader
from .tcp import create_connection, create_server, open_connection, start_server
from .tuntap import (
    TunTapGroup,
    TunTapOptions,
    TunTapStream,
    connect_tuntap,
    connect_tuntap_queues,
    open_tuntap,
)
from .tuntap_transport import TunTapAddress, TunTapTransport
from .unix import create_unix_connection, create_unix_server, open_unix_connection, start_unix_server
from .watch_subscription import Subscription as WatchSubscription
from .watcher import Watcher, watch
from .writer import StreamWriter

__all__ = [
    "ActivationSocket",
    "BufferLimitError",
    "CloseReason",
    "DatagramServer",
    "DatagramTransport",
    "DescriptorInUseError",
    "Detached",
    "EndpointError",
    "EventLoop",
    "ExecTransport",
    "FifoTransport",
    "InotifyEvent",
    "InotifyLimitError",
    "InotifyLimits",
    "InotifyMask",
    "InotifyProtocol",
    "InotifyTransport",
    "InotifyWatch",
    "Link",
    "LinkState",
    "OutputLimitError",
    "PacketPipeTransport",
    "PacketStream",
    "PacketTransport",
    "PeerCredentials",
    "PipeTransport",
    "Process",
    "ProcessTransport",
    "Producer",
    "ProgramTransport",
    "PtyPortTransport",
    "PtyProcessTransport",
    "PtyTransport",
    "ReconnectingSerial",
    "Relay",
    "RelayResult",
    "Route",
    "SerialError",
    "SerialSettings",
    "SerialTransport",
    "Server",
    "SessionTransport",
    "SocketTransport",
    "StdioTransport",
    "StreamReader",
    "StreamTransport",
    "StreamWriter",
    "TerminalEvent",
    "TerminalTransport",
    "TransportError",
    "TunTapAddress",
    "TunTapGroup",
    "TunTapOptions",
    "TunTapStream",
    "TunTapTransport",
    "UnixTransport",
    "UnpollableFileError",
    "WatchEnd",
    "WatchEvent",
    "WatchKind",
    "WatchSubscription",
    "Watcher",
    "WindowSize",
    "activation_sockets",
    "attach_terminal",
    "connect_exec",
    "connect_fd",
    "connect_fifo",
    "connect_inotify",
    "connect_packet_fd",
    "connect_pty",
    "connect_read_pipe",
    "connect_serial",
    "connect_stdio",
    "connect_terminal",
    "connect_tuntap",
    "connect_tuntap_queues",
    "connect_url",
    "connect_write_pipe",
    "create_connection",
    "create_datagram_endpoint",
    "create_datagram_server",
    "create_server",
    "create_subprocess_exec",
    "create_subprocess_shell",
    "create_unix_connection",
    "create_unix_server",
    "list_ports",
    "listen_url",
    "new_event_loop",
    "open_connection",
    "open_datagram_endpoint",
    "open_exec",
    "open_fd",
    "open_fifo",
    "open_packet_fd",
    "open_packet_url",
    "open_pipe",
    "open_pty",
    "open_pty_process",
    "open_serial",
    "open_stdio",
    "open_tuntap",
    "open_unix_connection",
    "open_url",
    "relay",
    "sendfile",
    "spawn_pty",
    "start_server",
    "start_tls",
    "start_unix_server",
    "subprocess_exec",
    "subprocess_shell",
    "watch",
]
