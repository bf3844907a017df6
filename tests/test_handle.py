"""The owner of one descriptor: takes it over, gives it back as it was, never touches another's."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from fdtransport._core import handle as handle_module
from fdtransport._core import syscalls
from fdtransport._core.handle import Handle, fileno_of
from fdtransport.errors import DescriptorInUseError


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            pass


class File:
    """A file object that says what it is told to say."""

    def __init__(self, fileno) -> None:
        self.number, self.closed = fileno, 0

    def fileno(self):
        return self.number

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("what", [None, "3", 3.0, True, False, b"3", object, [3]], ids=str)
def test_what_is_no_descriptor_is_a_type_error(what):
    with pytest.raises(TypeError, match="file descriptor"):
        Handle(what)


def test_a_fileno_that_is_no_int_is_a_type_error():
    with pytest.raises(TypeError, match="returned 'three'"):
        fileno_of(File("three"))


@pytest.mark.parametrize("make", [lambda: -1, lambda: File(-1), lambda: -1000], ids=["int", "file", "far"])
def test_a_negative_number_is_a_bad_descriptor(make):
    with pytest.raises(OSError, match="Bad file descriptor") as refusal:
        Handle(make())
    assert refusal.value.errno == errno.EBADF


def test_a_number_that_is_not_open_is_a_bad_descriptor(pipe):
    os.close(pipe[0])
    with pytest.raises(OSError, match="is not open") as refusal:
        Handle(pipe[0])
    assert refusal.value.errno == errno.EBADF


def test_a_closed_file_object_is_a_bad_descriptor(tmp_path):
    file = (tmp_path / "file").open("w")
    file.close()
    sock = socket.socket()
    sock.close()
    for closed in (file, sock):
        with pytest.raises(OSError, match="is closed") as refusal:
            Handle(closed)
        assert refusal.value.errno == errno.EBADF


def test_fileno_of_takes_numbers_and_file_objects(pipe):
    assert fileno_of(pipe[0]) == pipe[0]
    assert fileno_of(File(pipe[1])) == pipe[1]


@pytest.mark.parametrize("how", ["close", "release"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_the_mode_is_non_blocking_meanwhile_and_then_as_it_was(pipe, how, blocking):
    os.set_blocking(pipe[0], blocking)
    shared = os.dup(pipe[0])  # the same open file description
    try:
        handle = Handle(pipe[0])
        assert not os.get_blocking(shared)
        getattr(handle, how)()
        assert os.get_blocking(shared) is blocking
    finally:
        os.close(shared)


def test_access_mode_is_told(pipe):
    reading, writing = Handle(pipe[0]), Handle(pipe[1])
    assert (reading.readable, reading.writable) == (True, False)
    assert (writing.readable, writing.writable) == (False, True)
    near, far = socket.socketpair()
    both = Handle(near)
    assert (both.readable, both.writable) == (True, True)
    for handle in (reading, writing, both):
        handle.close()
    far.close()


def test_a_number_has_one_owner_at_a_time(pipe):
    first = Handle(pipe[0])
    for file in (pipe[0], File(pipe[0])):
        with pytest.raises(DescriptorInUseError, match=f"{pipe[0]} is already under a transport") as refusal:
            Handle(file)
        assert refusal.value.errno == errno.EBUSY
        assert isinstance(refusal.value, RuntimeError)
    assert first.release() == pipe[0]
    second = Handle(pipe[0])
    second.close()
    with pytest.raises(OSError, match="not open"):
        Handle(pipe[0])


def test_ownership_is_known_for_high_numbers_too(pipe):
    high = os.dup2(pipe[0], 3000)
    handle = Handle(high)
    with pytest.raises(DescriptorInUseError):
        Handle(high)
    handle.release()
    Handle(high).close()


def test_a_refused_take_over_leaves_the_number_free_and_as_it_was(pipe, monkeypatch):
    def refuse(fd, blocking):
        raise OSError(errno.EBADF, "an O_PATH descriptor has no mode")

    monkeypatch.setattr(syscalls, "set_blocking", refuse)
    with pytest.raises(OSError, match="O_PATH"):
        Handle(pipe[0])
    monkeypatch.undo()
    assert os.get_blocking(pipe[0])
    Handle(pipe[0]).close()


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="O_PATH is Linux's")
def test_an_o_path_descriptor_is_refused(tmp_path):
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match="Errno") as refusal:
            Handle(fd)
        assert refusal.value.errno == errno.EBADF
    finally:
        os.close(fd)


def test_the_number_is_forgotten_before_it_is_closed(pipe, monkeypatch):
    handle = Handle(pipe[0])
    seen = []

    def close(fd):
        seen.append((fd, handle.fd, handle_module._owned[fd]))
        os.close(fd)

    monkeypatch.setattr(syscalls, "close", close)
    handle.close()
    assert seen == [(pipe[0], -1, 0)]


def test_a_descriptor_is_closed_once(pipe, monkeypatch):
    closed = []
    monkeypatch.setattr(syscalls, "close", closed.append)
    handle = Handle(pipe[0])
    handle.close()
    handle.close()
    handle.release()
    assert closed == [pipe[0]]


def test_a_released_descriptor_is_not_closed_any_more(pipe):
    handle = Handle(pipe[0])
    assert handle.release() == pipe[0]
    handle.close()
    os.fstat(pipe[0])


def test_a_file_object_is_closed_by_its_own_method_and_given_back_as_itself(pipe, monkeypatch):
    monkeypatch.setattr(syscalls, "close", lambda fd: pytest.fail(f"{fd} was closed by its number"))
    file = File(pipe[0])
    assert Handle(file).release() is file
    handle = Handle(file)
    handle.close()
    handle.close()
    assert file.closed == 1


def test_an_error_of_close_is_told_and_the_number_is_gone_all_the_same(pipe, monkeypatch):
    def fail(fd):
        os.close(fd)
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(syscalls, "close", fail)
    handle = Handle(pipe[0])
    with pytest.raises(OSError, match="the disk is gone"):
        handle.close()
    assert handle.fd == -1
    handle.close()


def test_closing_what_somebody_else_closed_already_says_so(pipe):
    handle = Handle(pipe[0])
    os.close(pipe[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        handle.close()
    assert handle.fd == -1


def test_a_descriptor_that_only_names_a_file_is_refused_and_says_why(tmp_path):
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match=f"{fd} was opened with O_PATH") as refused:
            Handle(fd)
        assert refused.value.errno == errno.EBADF
        os.fstat(fd)
    finally:
        os.close(fd)
