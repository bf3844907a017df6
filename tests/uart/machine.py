"""qemu: four ports of 16550A, a port of USB, a monitor, and the thread that does what the guest asks for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import image
from .packages import Unpacked, unpacked

#: Seconds for the whole run. The start takes 20 to 40 of them in software emulation.
PATIENCE = 300
#: What is behind ttyS0 and so on.
PORTS = ("console", "pair1", "pair2", "control")


@dataclass
class Report:
    """What the guest told."""

    passed: dict[str, str] = field(default_factory=dict)
    """Check and what it saw."""
    failed: dict[str, str] = field(default_factory=dict)
    """Check and traceback."""
    started: float = 0.0
    """Seconds until the guest spoke."""
    seconds: float = 0.0
    trouble: str = ""
    """The machine itself failed."""

    @property
    def good(self) -> bool:
        return bool(self.passed) and not self.failed and not self.trouble

    @property
    def summary(self) -> str:
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed"
        return f"{counts}; the guest spoke after {self.started:.0f} s, all of it took {self.seconds:.0f} s"

    def __str__(self) -> str:
        lines = [f"passed  {name}: {seen}" for name, seen in self.passed.items()]
        lines += [f"FAILED  {name}\n{text}" for name, text in self.failed.items()]
        lines.append(self.summary)
        return "\n".join([*lines, self.trouble] if self.trouble else lines)


def run(*checks: str, environment: str = "", tell: Callable[[str], None] = lambda _: None) -> Report:
    """Boot, run the *checks* (all of them, if none is named) and tell what came of it; raises Missing."""
    packages = unpacked()
    with tempfile.TemporaryDirectory(prefix="uart-") as name:
        return Machine(packages, Path(name), tell).run(" ".join(checks), environment)


class Machine:
    """One run."""

    def __init__(self, packages: Unpacked, folder: Path, tell: Callable[[str], None]) -> None:
        self._packages, self._folder, self._tell = packages, folder, tell
        self._report = Report()
        self._began = time.monotonic()

    def run(self, checks: str, environment: str) -> Report:
        report, archive = self._report, self._folder / "initramfs"
        with open(archive, "wb") as out:
            image.make(self._packages, out, environment, checks)
        with contextlib.ExitStack() as stack:
            near, far = (stack.enter_context(sock) for sock in socket.socketpair())
            monitor, its = (stack.enter_context(sock) for sock in socket.socketpair())
            log = stack.enter_context(open(self._folder / "log", "wb"))
            process = subprocess.Popen(
                self._command(archive, far.fileno(), its.fileno()), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, pass_fds=(far.fileno(), its.fileno()),
                env={**os.environ, "LD_LIBRARY_PATH": self._packages.libraries},
            )  # fmt: skip
            for sock in (far, its):
                sock.close()
            try:
                with Plug(self._folder / "usb") as plug:
                    self._serve(near, Monitor(monitor), plug)
            except (OSError, ValueError) as exc:
                report.trouble = f"{type(exc).__name__}: {exc}"
            finally:
                if process.poll() is None:
                    process.terminate()
                status = process.wait(10)
        report.seconds = time.monotonic() - self._began
        if report.trouble:
            said = (self._folder / "log").read_bytes() + self._console()
            report.trouble += f"; qemu ended with {status}\n" + said.decode(errors="replace")[-4000:]
        return report

    def _console(self) -> bytes:
        console = self._folder / "console"
        return console.read_bytes() if console.exists() else b""

    def _command(self, archive: Path, control: int, monitor: int) -> list[str]:
        chardevs = [
            f"file,id=console,path={self._folder / 'console'}",
            f"socket,id=pair1,path={self._folder / 'pair'},server=on,wait=off",
            f"socket,id=pair2,path={self._folder / 'pair'}",
            f"socket,id=control,fd={control}",
            f"socket,id=monitor,fd={monitor}",
            f"socket,id=usb,path={self._folder / 'usb'},server=on,wait=off",
        ]
        return [
            *self._packages.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", "pc,accel=tcg", "-m", "512", "-net", "none", "-device", "piix3-usb-uhci,id=usb",
            "-kernel", str(self._packages.kernel), "-initrd", str(archive),
            "-append", "console=ttyS0 panic=-1 mitigations=off quiet rdinit=/init",
            *(word for chardev in chardevs for word in ("-chardev", chardev)),
            *(word for name in PORTS for word in ("-serial", f"chardev:{name}")),
            "-mon", "chardev=monitor,mode=control",
            "-device", "usb-serial,chardev=usb,bus=usb.0",
        ]  # fmt: skip

    def _serve(self, control: socket.socket, monitor: Monitor, plug: Plug) -> None:
        """Answer the guest until it has told everything."""
        actions: dict[str, Callable[..., Any]] = {
            "break": lambda port: monitor.call("chardev-send-break", id=port),
            "unplug": plug.out,
            "plug": plug.into,
        }
        for line in _lines(control, self._began + PATIENCE):
            said: dict[str, Any] = json.loads(line)
            if "ask" in said:
                asked = said.pop("ask")
                self._tell(f"        asked for {asked} {said or ''}")
                answer = actions[asked](**said)
                control.sendall(json.dumps({"done": answer}).encode() + b"\n")
            elif "check" in said:
                where = self._report.passed if said["ok"] else self._report.failed
                where[said["check"]] = said["text"]
                self._tell(f"{'passed' if said['ok'] else 'FAILED'}  {said['check']}: {said['text']}")
            elif "hello" in said:
                self._report.started = time.monotonic() - self._began
                self._tell(f"{said['hello']}, after {self._report.started:.0f} s")
            else:
                return
        raise ValueError("the machine ended before it had told everything")


class Monitor:
    """qemu's monitor (QMP)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = _lines(sock, time.monotonic() + PATIENCE)
        self._ready = False

    def call(self, command: str, **arguments: Any) -> Any:
        if not self._ready:
            self._ready = True
            self.call("qmp_capabilities")
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise ValueError(f"{command}: {answer['error']}")
            if "return" in answer:  # and not an event, or the greeting
                return answer["return"]
        raise ValueError("the monitor ended")


class Plug:
    """The USB port's cable: the port is plugged in for as long as this is connected, and gives back what it
    gets. (Taking the device away by the monitor, ``device_del``, ends qemu 7.2 if bytes are under way.)
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._echo = threading.Thread()

    def into(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        for _ in range(100):  # qemu makes the socket in its own time
            try:
                sock.connect(str(self._path))
                break
            except OSError:
                time.sleep(0.05)
        else:
            sock.close()
            raise ValueError("qemu has made no socket for the USB port")
        self._sock = sock
        self._echo = threading.Thread(target=_echo, args=(sock,))
        self._echo.start()

    def out(self) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._echo.join()
            self._sock.close()
            self._sock = None

    def __enter__(self) -> Plug:
        self.into()
        return self

    def __exit__(self, *exc: object) -> None:
        self.out()


def _lines(sock: socket.socket, until: float) -> Iterator[bytes]:
    rest = b""
    while True:
        sock.settimeout(max(until - time.monotonic(), 0.01))
        data = sock.recv(65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line for line in lines if line.startswith(b"{"))


def _echo(sock: socket.socket) -> None:
    """The far end of the USB port: it answers with what it gets."""
    with contextlib.suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)
