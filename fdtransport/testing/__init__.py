"""The contract of this library's transports as a kit that anybody can run, and what tests need besides.

Give it a *maker*: a coroutine function that makes a transport, with a protocol from the factory that it
is given, and the far end of it. Every promise of the contract that applies is then checked on the running
loop, each within seconds; one `ContractViolation` lists all that were broken.

::

    import asyncio, os
    from fdtransport import connect_fd
    from fdtransport.testing import FarEnd, check_stream_transport

    async def make(protocol_factory):
        reading, writing = os.pipe()
        far = FarEnd(writing)
        transport, _ = await connect_fd(protocol_factory, reading)
        return transport, far

    asyncio.run(check_stream_transport(make))

``stream_promises()`` and ``packet_promises()`` are the same checks one by one, for a parametrised test.
`FaultPlan` and ``sweep`` make system calls fail; ``memory_pair`` connects two protocols without a network,
and `MemoryTun` is a TUN or TAP without a device; the recording protocols write down what a transport tells
them.
"""

from .apart import check_run_exit
from .ends import FarEnd
from .faults import ERRNOS, FOREVER, TRANSIENT, Call, FaultPlan, Outcome, sweep
from .kit import (
    check_half_close,
    check_packet_transport,
    check_producers,
    check_stream_transport,
    packet_promises,
    stream_promises,
)
from .kit_producers import RecordingProducer
from .memory import (
    PairMaker,
    fd_pair_maker,
    memory_pair,
    packet_pair_maker,
    read_pipe_maker,
    socket_pair_maker,
    tcp_maker,
    write_pipe_maker,
)
from .observe import Idle, descriptors, idle_cost, pattern
from .promises import Breach, ContractViolation, Features, Maker, Promise, detect_features
from .recording import RecordingBufferedProtocol, RecordingDatagramProtocol, RecordingProtocol
from .serial_pair import SerialPair, VirtualPort, serial_pair
from .tls_end import TlsEnd
from .tun import MemoryLink, MemoryTun, MemoryTunTransport

__all__ = [
    "ERRNOS",
    "FOREVER",
    "TRANSIENT",
    "Breach",
    "Call",
    "ContractViolation",
    "FarEnd",
    "FaultPlan",
    "Features",
    "Idle",
    "Maker",
    "MemoryLink",
    "MemoryTun",
    "MemoryTunTransport",
    "Outcome",
    "PairMaker",
    "Promise",
    "RecordingBufferedProtocol",
    "RecordingDatagramProtocol",
    "RecordingProducer",
    "RecordingProtocol",
    "SerialPair",
    "TlsEnd",
    "VirtualPort",
    "check_half_close",
    "check_packet_transport",
    "check_producers",
    "check_run_exit",
    "check_stream_transport",
    "descriptors",
    "detect_features",
    "fd_pair_maker",
    "idle_cost",
    "memory_pair",
    "packet_pair_maker",
    "packet_promises",
    "pattern",
    "read_pipe_maker",
    "serial_pair",
    "socket_pair_maker",
    "stream_promises",
    "sweep",
    "tcp_maker",
    "write_pipe_maker",
]
