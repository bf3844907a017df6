"""Checks that need an event loop of their own, because they end it: promises 9, 11 and 14."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from .observe import Broken, expect, newcomers, pattern, turns
from .observe import descriptors as open_descriptors
from .promises import Breach, ContractViolation, Maker, SilentProtocol, promise
from .recording import RecordingProtocol
from .trial import Trial

__all__ = ["check_run_exit", "run_apart"]

T = TypeVar("T")


def run_apart(
    loop: asyncio.AbstractEventLoop | Callable[[], asyncio.AbstractEventLoop],
    main: Callable[[], Awaitable[T]],
    timeout: float = 4.0,
) -> T:
    """Run ``main()`` as ``asyncio.run`` would, in a new loop like ``loop``, in a thread; wait for it to end.

    :raises Broken: it took too long. Otherwise whatever ``main`` raises.
    """
    factory = type(loop) if isinstance(loop, asyncio.AbstractEventLoop) else loop
    results: list[T] = []
    errors: list[BaseException] = []

    async def started() -> T:
        return await main()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                results.append(runner.run(started()))
        except BaseException as exc:
            exc.__traceback__ = None  # it holds the frames, and with them the transports
            errors.append(exc)

    thread = threading.Thread(target=run, name="fdtransport.testing", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise Broken(f"a loop of its own did not end within {timeout:g} s")
    if errors:
        raise errors[0]
    return results[0]


def check_run_exit(
    make: Maker, loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> None:
    """Check promise 9: a program that returns in the middle of anything leaks nothing.

    Not a coroutine: it runs programs of its own, each in a new loop in a thread of its own, so ``make``
    must not depend on the loop of the caller.

    :raises ContractViolation: something was left behind.

    ::

        check_run_exit(socket_pair_maker(), uvloop.new_event_loop)
    """
    breaches = [
        Breach(9, "asyncio_run_that_returns_in_the_middle_of_anything_leaks_nothing", seen)
        for seen in _run_exits(make, loop_factory)
    ]
    if breaches:
        raise ContractViolation(breaches)


def _run_exits(make: Maker, loop: Any) -> list[str]:
    seen: list[str] = []
    for name, action in _EXITS.items():
        before, threads = open_descriptors(), threading.active_count()
        ends: list[Any] = []

        async def main(action: Callable[[Any, Any], None] = action, ends: list[Any] = ends) -> None:
            transport, far = await make(RecordingProtocol)
            try:
                if action is not _close and far.can_receive:
                    transport.write(pattern(1024 * 1024))
                action(transport, far)
            finally:
                # The loop drops what it knows only when it is closed; until then the far end stays.
                ends.append(far)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                run_apart(loop, main)
            except Broken as exc:
                seen.append(f"{name}: {exc.seen}")
            except Exception as exc:
                seen.append(f"{name}: {exc!r} came out of the run")
            gc.collect()
        for far in ends:
            far.close()
        left = _settled(before)
        if left:
            seen.append(f"{name}: descriptors were left open: {left}")
        if threading.active_count() > threads:
            seen.append(f"{name}: a thread was left behind")
    return seen


def _close(transport: Any, far: Any) -> None:
    transport.close()


#: What the last line of the program does. All but the first write a backlog before.
_EXITS: dict[str, Callable[[Any, Any], None]] = {
    "right after close()": _close,
    "after close() with a backlog": lambda transport, far: transport.close(),
    "after abort()": lambda transport, far: transport.abort(),
    "with everything open": lambda transport, far: None,
    "after the far end went": lambda transport, far: far.close(),
}


def _settled(before: dict[int, str]) -> dict[int, str]:
    deadline = time.monotonic() + 0.3
    while (left := newcomers(before)) and time.monotonic() < deadline:
        time.sleep(0.001)
    return left


@promise(9, "apart", "own_loop")
async def asyncio_run_that_returns_in_the_middle_of_anything_leaks_nothing(trial: Trial) -> None:
    seen = _run_exits(trial.make, trial.loop)
    trial.restart_clock()
    if seen:
        raise Broken(seen[0])


@promise(11, "apart records", "own_loop")
async def an_open_transport_that_is_collected_warns_and_closes_its_descriptor(trial: Trial) -> None:
    fds: list[int] = []
    far_ends: list[Any] = []

    async def main() -> None:
        before = open_descriptors()
        _, far = await trial.make(SilentProtocol)
        far_ends.append(far)
        fds.extend(newcomers(before).keys() - set(far.filenos()))

    before = open_descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_apart(trial.loop, main)
        gc.collect()
    told = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
    expect(any("transport" in text for text in told), f"no ResourceWarning named the transport, only {told}")
    for far in far_ends:
        far.close()
    left = await trial.left_open(before)
    expect(not left, f"descriptors were left open: {left}")


@promise(11, "apart records", "own_loop")
async def no_method_of_a_transport_raises_after_its_loop_is_closed(trial: Trial) -> None:
    kept: list[Any] = []

    async def main() -> None:
        kept.extend(await trial.make(SilentProtocol))

    run_apart(trial.loop, main)
    transport, far = kept
    kept.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            expect(isinstance(repr(transport), str), "repr() on a closed loop")
            transport.is_closing()
            transport.get_extra_info("peername")
            del transport
            gc.collect()
    finally:
        far.close()


@promise(11, "life")
async def repr_never_raises(trial: Trial) -> None:
    seen: list[str] = []
    pair = await trial.open(RecordingProtocol(lost=lambda p, exc: seen.append(repr(p.transport))))
    seen.append(repr(pair.transport))
    if trial.features.readable:
        pair.transport.pause_reading()
        seen.append(repr(pair.transport))
    if trial.features.writable:
        await pair.fill()
        pair.transport.close()
        seen.append(repr(pair.transport))
    pair.transport.abort()
    seen.append(repr(pair.transport))
    await pair.until_lost()
    seen.append(repr(pair.transport))
    expect(all(seen), "a repr is empty")
    kind: Any = type(pair.transport)
    try:
        half_built = kind.__new__(kind)
    except TypeError:  # a class in C may refuse
        return
    expect(isinstance(repr(half_built), str), "repr() of a half-built transport")
    # What __del__ raises arrives at sys.unraisablehook, which the trial watches.
    del half_built
    gc.collect()


@promise(14, "apart records", "tidy_maker")
async def cancelling_the_helper_at_any_await_leaves_nothing_behind(trial: Trial) -> None:
    before = open_descriptors()
    steps = 0
    while True:
        protocols: list[Any] = []

        def factory(protocols: list[Any] = protocols) -> Any:
            protocols.append(trial.recorder())
            return protocols[-1]

        task = asyncio.ensure_future(trial.make(factory))
        await turns(steps)
        if task.done():
            transport, far = task.result()
            transport.abort()
            await turns(5)
            far.close()
            return
        task.cancel()
        try:
            transport, far = await task
            transport.abort()
            far.close()
        except asyncio.CancelledError:
            pass
        await turns(5)
        for protocol in protocols:
            made, lost = protocol.count("made"), protocol.count("lost")
            expect(made == lost, f"cancelled at step {steps}: {protocol.summary()}", 14)
        del task
        trial.close_ends()
        left = await trial.left_open(before)
        expect(not left, f"cancelled at step {steps}: descriptors were left open: {left}")
        steps += 1
        expect(steps < 1000, "the helper did not return within 1000 turns of the loop")


@promise(44, "apart records", "tidy_maker")
async def a_protocol_factory_that_raises_leaves_nothing_behind(trial: Trial) -> None:
    wrong = ZeroDivisionError("raised in the protocol factory, on purpose")

    def factory() -> Any:
        raise wrong

    before = open_descriptors()
    try:
        await trial.make(factory)
    except ZeroDivisionError as exc:
        expect(exc is wrong, f"another exception came out: {exc!r}")
    else:
        expect(False, "the helper returned although the factory raised")
    trial.close_ends()
    left = await trial.left_open(before)
    expect(not left, f"descriptors were left open: {left}")
