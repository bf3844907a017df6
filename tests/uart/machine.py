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
USB = {"driver": "usb-serial", "chardev": "usb", "id": "usbport", "bus": "usb.0"}


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

    def __str__(self) -> str:
        lines = [f"passed  {name}: {seen}" for name, seen in self.passed.items()]
        lines += [f"FAILED  {name}\n{text}" for name, text in self.failed.items()]
        lines.append(f"the guest spoke after {self.started:.0f} s, all of it took {self.seconds:.0f} s")
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
            echo, usb = (stack.enter_context(sock) for sock in socket.socketpair())
            log = stack.enter_context(open(self._folder / "log", "wb"))
            process = subprocess.Popen(
                self._command(archive, far.fileno(), its.fileno(), usb.fileno()), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, pass_fds=(far.fileno(), its.fileno(), usb.fileno()),
                env={**os.environ, "LD_LIBRARY_PATH": self._packages.libraries},
            )  # fmt: skip
            for sock in (far, its, usb):
                sock.close()
            echoing = threading.Thread(target=_echo, args=(echo,))
            echoing.start()
            try:
                self._serve(near, Monitor(monitor))
            except (OSError, ValueError) as exc:
                report.trouble = f"{type(exc).__name__}: {exc}"
            finally:
                if process.poll() is None:
                    process.terminate()
                status = process.wait(10)
                echoing.join()
        report.seconds = time.monotonic() - self._began
        if report.trouble:
            said = (self._folder / "log").read_bytes() + self._console()
            report.trouble += f"; qemu ended with {status}\n" + said.decode(errors="replace")[-4000:]
        return report

    def _console(self) -> bytes:
        console = self._folder / "console"
        return console.read_bytes() if console.exists() else b""

    def _command(self, archive: Path, control: int, monitor: int, usb: int) -> list[str]:
        chardevs = [
            f"file,id=console,path={self._folder / 'console'}",
            f"socket,id=pair1,path={self._folder / 'pair'},server=on,wait=off",
            f"socket,id=pair2,path={self._folder / 'pair'}",
            f"socket,id=control,fd={control}",
            f"socket,id=monitor,fd={monitor}",
            f"socket,id=usb,fd={usb}",
        ]
        return [
            *self._packages.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", "pc,accel=tcg", "-m", "512", "-net", "none", "-device", "piix3-usb-uhci,id=usb",
            "-kernel", str(self._packages.kernel), "-initrd", str(archive),
            "-append", "console=ttyS0 panic=-1 mitigations=off quiet rdinit=/init",
            *(word for chardev in chardevs for word in ("-chardev", chardev)),
            *(word for name in ("console", "pair1", "pair2", "control") for word in ("-serial", f"chardev:{name}")),
            "-mon", "chardev=monitor,mode=control",
            "-device", ",".join([USB["driver"], *(f"{k}={v}" for k, v in USB.items() if k != "driver")]),
        ]  # fmt: skip

    def _serve(self, control: socket.socket, monitor: Monitor) -> None:
        """Answer the guest until it has told everything."""
        for line in _lines(control, self._began + PATIENCE):
            said: dict[str, Any] = json.loads(line)
            if "ask" in said:
                asked = said.pop("ask")
                self._tell(f"        asked for {asked} {said or ''}")
                control.sendall(json.dumps(monitor.do(asked, **said)).encode() + b"\n")
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
    """What the guest may ask for, by qemu's monitor (QMP)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = _lines(sock, time.monotonic() + PATIENCE)
        self._ready = False

    def do(self, asked: str, **arguments: Any) -> Any:
        actions: dict[str, Callable[..., Any]] = {
            "break": lambda port: self._call("chardev-send-break", id=port),
            "unplug": lambda: self._call("device_del", id=USB["id"]),
            "plug": lambda: self._call("device_add", **USB),
        }
        return actions[asked](**arguments)

    def _call(self, command: str, **arguments: Any) -> Any:
        if not self._ready:
            self._ready = True
            self._call("qmp_capabilities")
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "return" in answer or "error" in answer:  # and not an event, or the greeting
                return answer
        raise ValueError("the monitor ended")


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
