"""The guest's file system, as one file that the kernel unpacks into memory (a cpio archive, "newc")."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import BinaryIO

from .packages import Unpacked

PROJECT = Path(__file__).resolve().parents[2]
#: Kernel modules: the ports of USB, and a gadget that is plugged into a host controller of its own.
MODULES = ("uhci-hcd", "ehci-pci", "ftdi_sio", "cdc-acm", "dummy_hcd", "usb_f_acm", "g_serial")
#: What of Python's library no check needs.
UNWANTED = {
    "test", "tests", "site-packages", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3",
    "pydoc_data", "dist-packages",
}  # fmt: skip
PACKAGES = ("serial", "serial_asyncio", "typing_extensions", "aiohappyeyeballs")

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir /dev/pts && mount -t devpts none /dev/pts
ip link set lo up
echo uart: modules >/dev/console
for module in {modules}; do insmod /modules/$module.ko; done
echo uart: python >/dev/console
export PATH=/bin HOME=/tmp PYTHONPATH={project}:{project}/tests:/packages
export PYTHONDONTWRITEBYTECODE=1 {environment}
{python} -m uart.guest {arguments} >/dev/console 2>&1
poweroff -f
"""


class Archive:
    """Writes the archive; a folder is entered before what is in it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._entered = {Path("/")}

    def file(self, where: Path, content: bytes, mode: int = 0o644, changed: float = 0) -> None:
        self._enter(where, stat.S_IFREG | mode, content, int(changed))

    def copy(self, source: Path, where: Path | None = None) -> None:
        """What is at *source*, links followed; cached bytecode is of use only to a file of the same time."""
        status = source.stat()
        self.file(where or source, source.read_bytes(), stat.S_IMODE(status.st_mode), status.st_mtime)

    def tree(self, source: Path, where: Path | None = None) -> None:
        where = where or source
        if source.is_file():
            self.copy(source, where)
            return
        for folder, names, files in os.walk(source):
            names[:] = [name for name in names if name not in UNWANTED and not name.startswith("config-")]
            for name in files:
                path = Path(folder, name)
                self.copy(path, where / path.relative_to(source))

    def folder(self, where: Path) -> None:
        if where not in self._entered:
            self._enter(where, stat.S_IFDIR | 0o755, b"", 0)

    def close(self) -> None:
        self._write("TRAILER!!!", 0, b"", 0)

    def _enter(self, where: Path, mode: int, content: bytes, changed: int) -> None:
        if where in self._entered:
            return
        self.folder(where.parent)
        self._entered.add(where)
        self._write(str(where).lstrip("/"), mode, content, changed)

    def _write(self, name: str, mode: int, content: bytes, changed: int) -> None:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (len(self._entered), mode, 0, 0, links, changed, len(content), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + "".join(f"{number:08x}" for number in numbers).encode() + encoded
        self._out.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))


def make(unpacked: Unpacked, out: BinaryIO, environment: str = "", arguments: str = "") -> None:
    """Write the archive to *out*."""
    archive = Archive(out)
    for name in ("proc", "sys", "dev", "tmp", "bin"):
        archive.folder(Path("/", name))
    archive.copy(unpacked.busybox, Path("/bin/busybox"))
    modules = list(_modules(unpacked))
    for module in modules:
        archive.copy(module, Path("/modules", module.name))
    python = _python(archive)
    for name in PACKAGES:
        if (found := util.find_spec(name)) is not None and found.origin is not None:
            source = Path(found.origin)
            source = source.parent if source.name == "__init__.py" else source
            archive.tree(source, Path("/packages", source.name))
    archive.tree(PROJECT / "fdtransport")
    archive.tree(Path(__file__).parent)
    archive.copy(Path(__file__).parents[1] / "loop_stalls.py")
    init = INIT.format(
        modules=" ".join(module.stem for module in modules), project=PROJECT, python=python,
        environment=environment, arguments=arguments,
    )  # fmt: skip
    archive.file(Path("/init"), init.encode(), 0o755)
    archive.close()


def _modules(unpacked: Unpacked) -> Iterator[Path]:
    """The files of the modules, each after those that it depends on."""
    files = {path.stem.replace("-", "_"): path for path in unpacked.modules.rglob("*.ko")}
    done: set[str] = set()

    def needed(name: str) -> Iterator[Path]:
        if name in done or name not in files:  # built in, perhaps
            return
        done.add(name)
        depends = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for other in depends[1].decode().split(",") if depends else ():
            yield from needed(other.replace("-", "_"))
        yield files[name]

    for name in MODULES:
        yield from needed(name.replace("-", "_"))


def _python(archive: Archive) -> Path:
    """This interpreter at the path that it has here, with its library and what both are linked with."""
    executable = Path(sys.executable).resolve()
    archive.copy(executable)
    linked = [executable]
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        base = Path(folder.replace(sys.prefix, sys.base_prefix))
        archive.tree(base)
        linked += sorted((base / "lib-dynload").glob("*.so"))
    listed = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, check=False).stdout
    for path in sorted(set(re.findall(r"(/\S+\.so\S*) \(0x", listed))):
        archive.copy(Path(path))
    return executable
