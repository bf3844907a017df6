"""Debian's packages, downloaded and unpacked into a folder of their own: nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: What is asked for. The kernel's package is a name without a file: it depends on the newest one.
PROGRAMS, KERNEL = ("qemu-system-x86", "busybox-static"), "linux-image-amd64"
#: Seconds for one call of apt or dpkg.
PATIENCE = 300


class Missing(Exception):
    """Why there is no machine to be had here: one line."""


@dataclass(frozen=True)
class Unpacked:
    """A folder with the packages' files."""

    root: Path

    @property
    def kernel(self) -> Path:
        return next(self.root.glob("boot/vmlinuz-*"))

    @property
    def modules(self) -> Path:
        return next(self.root.glob("lib/modules/*"))

    @property
    def busybox(self) -> Path:
        return next(path for path in self.root.glob("**/bin/busybox") if path.is_file())

    @property
    def qemu(self) -> list[str]:
        """The command, as far as the unpacked folder decides it."""
        command = [str(self.root / "usr/bin/qemu-system-x86_64")]
        for folder in ("usr/share/qemu", "usr/share/seabios"):
            command += ["-L", str(self.root / folder)]
        return command

    @property
    def libraries(self) -> str:
        """For LD_LIBRARY_PATH."""
        return ":".join(str(self.root / folder / "x86_64-linux-gnu") for folder in ("usr/lib", "lib"))


def unpacked() -> Unpacked:
    """The packages, downloaded at the first call (90 MB); raises Missing."""
    if os.uname().machine != "x86_64":
        raise Missing(f"the machine is one of x86_64, and this is {os.uname().machine}")
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is not here: the machine is made of Debian's packages")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fdtransport-uart"
    whole = cache / "whole"  # made last: what is there without it was left by an interrupted call
    if not whole.exists():
        shutil.rmtree(cache, ignore_errors=True)
        (cache / "packages").mkdir(parents=True)
        (cache / "root").mkdir()
        _download(cache / "packages")
        for package in (cache / "packages").glob("*.deb"):
            _call("dpkg-deb", "-x", str(package), str(cache / "root"))
        shutil.rmtree(cache / "packages")
        whole.touch()
    return Unpacked(cache / "root")


def _download(folder: Path) -> None:
    try:
        names = _names()
    except Missing:  # the lists of packages may be missing, or old
        _call("apt-get", "update", "-qq")
        names = _names()
    _call("apt-get", "download", "-qq", *names, cwd=folder)


def _names() -> list[str]:
    """The programs with what they need and this system has not, and the kernel's package."""
    plan = _call("apt-get", "install", "-s", "-q", "--no-install-recommends", *PROGRAMS)
    kernel = re.search(r"Depends: (linux-image-\S+)", _call("apt-cache", "depends", KERNEL))
    if kernel is None:
        raise Missing(f"apt-cache knows no {KERNEL}")
    names = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
    data = ("qemu-system-common", "qemu-system-data", "seabios")  # here, perhaps, but not in the folder
    return [*dict.fromkeys([*PROGRAMS, *data, *names]), kernel[1]]


def _call(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, cwd=cwd,
            timeout=PATIENCE, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        said = (getattr(exc, "stderr", None) or str(exc)).strip().splitlines()
        raise Missing(f"{' '.join(command[:3])}: {said[-1] if said else exc}") from exc
    return done.stdout
