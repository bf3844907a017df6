"""The layout of the library: who may import whom, and who may talk to the kernel."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import fdtransport

ROOT = Path(fdtransport.__file__).parent

#: The floor of each module; a package's name stands for what is in it and not named. What comes
#: after the point is a step of the stairs within one floor. Everything else is an adapter.
FLOORS = {
    "errors": 0,
    "_core.syscalls": 0,
    "_core.lifecycle": 1,
    "_core.flow": 1,
    "_core.queues": 1,
    "urls": 1,
    "url_options": 1.1,
    "_core.parmrk": 1,
    "_core.file_events": 1.1,
    "_core.handle": 1.1,
    "_core.readiness": 1.1,
    "_core": 1.2,
    "_core.credentials": 1.1,
    "_core.child": 1.3,
    "_core.serial_marks": 1.25,
    "_core.serial_line": 1.25,
    "_core.serial_sending": 1.26,
    "_core.serial_rs485": 1.27,
    "_core.serial_file": 1.3,
    "_core.serial_frames": 2.15,
    "_core.endpoint_socket": 1.3,
    "_core.identity": 1.2,
    "_core.raw_terminal": 1.3,
    "_core.namespaces": 1.2,
    "_core.netlink": 1,
    "_core.segmentation": 1,
    "_core.root": 1.5,
    "_core.inotify_records": 1,
    "_core.watch_tree": 1,
    "_core.watch_pairs": 1.1,
    "_core.watch_difference": 1.1,
    "_core.watch_ignore": 1.1,
    "_core.watch_scan": 1.3,
    "_core.watch_roots": 1.35,
    "_core.watch_engine": 1.4,
    "_core.interest": 1.6,
    "_core.socket_object": 1.6,
    "_core.backpressure": 1.7,
    "_core.base": 2.0,
    "_core.reading": 2.05,
    "_core.file_sending": 1.8,
    "_core.ready": 2.08,
    "_core.stream": 2.1,
    "_core.rights": 2.15,
    "_core.packet": 2.2,
    "_core.tun_packets": 2.25,
    "_core.tun_sending": 2.26,
    "_core.tun_reading": 2.27,
    "_core.opening": 2.3,
    "_core.tls": 2.3,
    "writer": 2.35,
    "streams": 2.4,
    "link": 2.4,
    "packets": 2.4,
    "program": 2.35,
    "sides": 2.4,
    "ways": 2.5,
    "records": 2.6,
    "relay": 2.7,
    "progress": 4.0,
    "schemes": 4.0,
    "endpoints": 4.1,
    "loop": 4.1,
    "testing": 4.2,
    "command_line": 4.9,
    "__main__": 5,
    "__init__": 5,
}
ADAPTERS = 3
#: Adapters that build on another one, the specific on the general.
BUILDS_ON = {
    "attach": {"stdio"},
    "exec": {"pipes"},
    "fd": {"datagrams"},
    "feeding": {"pipes"},
    "fifo": {"pipes"},
    "follow": {"feeding", "inotify", "inotify_events"},
    "inotify": {"inotify_events"},
    "popen": {"popen_words", "process_transport", "processes"},
    "process_pipes": {"pipes", "sockets"},
    "process_streams": {"popen_words", "process_pipes", "process_transport", "processes"},
    "process_transport": {"process_pipes"},
    "processes": {"popen_words", "process_transport"},
    "pty_port": {"pty"},
    "pty_process": {"pty"},
    "serial": {
        "serial_connect",
        "serial_modem",
        "serial_port",
        "serial_ports",
        "serial_reconnect",
        "serial_transport",
        "serial_urls",
    },
    "serial_connect": {"serial_port", "serial_transport", "serial_urls"},
    "serial_control": {"serial_modem", "serial_port"},
    "serial_ports": {"serial_urls"},
    "serial_reconnect": {"serial_connect", "serial_port", "serial_transport"},
    "serial_transport": {"serial_control", "serial_port"},
    "serial_urls": {"serial_port"},
    "sessions": {"datagrams"},
    "tcp": {"sockets"},
    "tuntap": {"tuntap_settings", "tuntap_transport"},
    "unix": {"sockets"},
    "watch_lines": {"feeding", "watcher"},
    "watcher": {"inotify", "watch_subscription"},
}
PURELY = {
    "__future__", "collections", "collections.abc", "dataclasses", "enum", "functools", "struct", "typing",
}  # fmt: skip
PURE = ("_core.lifecycle", "_core.flow", "_core.parmrk", "_core.queues", "_core.segmentation")
#: What opens, closes, reads, writes or controls a descriptor, and has its door in _core/syscalls.py.
KERNEL = {
    "os": {
        "open", "close", "closerange", "read", "write", "readv", "writev", "preadv", "pwritev", "pread",
        "pwrite", "splice", "sendfile", "copy_file_range", "dup", "dup2", "pipe", "pipe2", "openpty",
        "fdopen", "fstat", "lseek", "ftruncate", "set_blocking", "get_blocking", "set_inheritable",
        "eventfd", "memfd_create", "posix_fadvise", "pidfd_open", "fsync", "posix_spawn",
        "posix_spawnp", "fork", "forkpty", "waitid", "fdatasync", "ioctl",
    },
    "fcntl": None,
    "select": {"epoll", "poll", "select", "kqueue"},
    "socket": set(),
}  # fmt: skip


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def floor(name: str) -> float:
    for known in (name, *_packages(name)):
        if known in FLOORS:
            return FLOORS[known]
    return ADAPTERS


def _packages(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def imports(name: str, nodes: Iterable[ast.AST] | None = None) -> Iterator[str]:
    """The modules of this library that the module *name* imports, anywhere in it or in *nodes*."""
    is_package = name.endswith("__init__")
    here = name.split(".")[:-1]
    for node in ast.walk(MODULES[name]) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fdtransport":
                    yield alias.name.partition(".")[2] or "__init__"
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1]
                assert node.level <= len(here) + 1, f"{name} imports from outside the library"
            elif node.module and node.module.split(".")[0] == "fdtransport":
                base = []
            else:
                continue
            path = [*base, *(node.module or "").removeprefix("fdtransport").strip(".").split(".")]
            module = ".".join(part for part in path if part)
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                if inner in MODULES:
                    yield inner
                elif module in MODULES:
                    yield module
                elif not (is_package and module == ".".join(here)):
                    yield f"{module}.__init__".strip(".")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_floors_below_its_own(name):
    package = name.rpartition(".")[0]
    for other in imports(name):
        if other == name or other in BUILDS_ON.get(name, ()):
            continue
        if package == "testing" and other.startswith("testing."):
            continue
        assert floor(other) < floor(name), f"{name} imports {other}"


def test_no_two_modules_need_each_other_to_be_imported():
    wanted = {name: set(imports(name, MODULES[name].body)) for name in MODULES}
    done: set[str] = set()
    while ready := {name for name in wanted if name not in done and wanted[name] <= done | {name}}:
        done |= ready
    assert done == set(wanted), f"a circle: {sorted(set(wanted) - done)}"


@pytest.mark.parametrize("name", PURE)
def test_the_pure_rooms_know_no_descriptor_and_no_loop(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= PURELY
        elif isinstance(node, ast.ImportFrom):
            assert node.module in PURELY


def kernel_calls(name: str) -> Iterator[str]:
    """What the module takes from the kernel past the one door, as ``os.read:12``."""
    aliases: dict[str, str] = {}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in KERNEL:
                    aliases[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module in KERNEL and not node.level:
            names = KERNEL[node.module]
            for alias in node.names:
                if names is None or alias.name in names:
                    yield f"{node.module}.{alias.name}:{node.lineno}"
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            module = aliases[node.value.id]
            names = KERNEL[module]
            if node.attr.islower() if names is None else node.attr in names:
                yield f"{module}.{node.attr}:{node.lineno}"


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name != "_core.syscalls" and not name.startswith("testing")]
)
def test_the_kernel_is_called_through_its_one_door(name):
    assert list(kernel_calls(name)) == []


def test_the_checks_see_what_they_look_for():
    assert "os.read" in {call.partition(":")[0] for call in kernel_calls("_core.syscalls")}
    assert {"_core.base", "_core.lifecycle", "errors", "_core.syscalls"} <= set(imports("_core.stream"))
    assert set(imports("fd")) <= set(MODULES)
    assert (floor("errors"), floor("_core.stream"), floor("fd"), floor("__init__")) == (0, 2.1, 3, 5)


LOOPS = ("base_events", "proactor_events", "selector_events", "unix_events", "windows_events")


def test_the_library_imports_nothing_of_a_loop_but_its_public_parts():
    for name, tree in MODULES.items():
        if name == "command_line":
            continue  # it makes the loop
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asyncio."):
                assert node.module.split(".")[1] not in LOOPS, name
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "uvloop" for alias in node.names), name
