"""The exception family and what an errno means."""

from __future__ import annotations

import errno
import inspect
import pickle

import pytest

from fdtransport import errors
from fdtransport.errors import COMMON, WRITING, Meaning, meaning

MADE = {
    errors.TransportError: (errors.TransportError(errno.EIO, "broken"), errno.EIO),
    errors.UnpollableFileError: (errors.UnpollableFileError("a regular file"), errno.EPERM),
    errors.DescriptorInUseError: (errors.DescriptorInUseError(7), errno.EBUSY),
    errors.BufferLimitError: (errors.BufferLimitError(10, 5), errno.ENOBUFS),
    errors.EndpointError: (errors.EndpointError("no such scheme"), errno.EINVAL),
    errors.InotifyLimitError: (errors.InotifyLimitError(errno.ENOSPC, "no more watches"), errno.ENOSPC),
    errors.OutputLimitError: (errors.OutputLimitError(1, 10), errno.ENOBUFS),
}
FAMILY = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, BaseException)
]


def test_every_exception_is_in_this_test_and_public():
    assert set(FAMILY) == set(MADE)
    assert {cls.__name__ for cls in FAMILY} <= set(errors.__all__)


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_every_exception_is_an_oserror_with_a_true_errno(cls):
    exc, number = MADE[cls]
    assert isinstance(exc, errors.TransportError)
    assert isinstance(exc, OSError)
    assert exc.errno == number
    assert exc.strerror
    assert cls.__doc__


def test_each_is_also_what_a_caller_may_look_for():
    assert isinstance(MADE[errors.DescriptorInUseError][0], RuntimeError)
    assert isinstance(MADE[errors.EndpointError][0], ValueError)


def test_messages_name_the_culprit():
    assert "7" in str(MADE[errors.DescriptorInUseError][0])
    assert "10" in str(MADE[errors.BufferLimitError][0])
    assert "5" in str(MADE[errors.BufferLimitError][0])
    assert str(MADE[errors.EndpointError][0]) == "no such scheme"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR], ids=errno.errorcode.get)
def test_nothing_happened(number):
    assert meaning(OSError(number, "")) is Meaning.AGAIN


def test_a_shortage_of_buffers_passes_for_those_who_write():
    assert meaning(OSError(errno.ENOBUFS, ""), WRITING) is Meaning.LATER
    assert meaning(OSError(errno.ENOBUFS, "")) is Meaning.FATAL


def test_what_is_not_listed_is_fatal():
    for number in errno.errorcode:
        if number not in COMMON:
            assert meaning(OSError(number, "")) is Meaning.FATAL
    assert meaning(OSError("no number at all")) is Meaning.FATAL


def test_a_kind_may_say_otherwise():
    table = {**COMMON, errno.EIO: Meaning.END}
    assert meaning(OSError(errno.EIO, ""), table) is Meaning.END
    assert meaning(OSError(errno.EIO, "")) is Meaning.FATAL


def test_a_bad_descriptor_is_told_as_the_kernel_tells_it():
    exc = errors.bad_descriptor("seven")
    assert (type(exc), exc.errno) == (OSError, errno.EBADF)
    assert str(exc).endswith("Bad file descriptor: seven")


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_exceptions_can_be_pickled(cls):
    exc, number = MADE[cls]
    again = pickle.loads(pickle.dumps(exc))
    assert (type(again), again.errno, str(again)) == (cls, number, str(exc))
