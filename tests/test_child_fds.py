"""What a caller may say of a child's descriptors, and what is opened for it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tempfile

import pytest

from fdtransport._core.child_fds import UNSET, close_ends, descriptor_map, open_ends
from fdtransport._core.handle import Handle
from fdtransport.testing import FaultPlan

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL


def mapped(fds=None, default=PIPE, stdin=UNSET, stdout=UNSET, stderr=UNSET):
    return descriptor_map(fds, default, stdin=stdin, stdout=stdout, stderr=stderr)


def test_without_a_map_the_three_are_as_asyncio_has_them():
    assert mapped() == {0: "w", 1: "r", 2: "r"}
    assert mapped(default=None) == {0: 0, 1: 1, 2: 2}
    assert mapped(stdin=DEVNULL, stderr=STDOUT) == {0: DEVNULL, 1: "r", 2: STDOUT}
    assert mapped(default=None, stdout=PIPE) == {0: 0, 1: "r", 2: 2}


def test_a_map_is_the_whole_of_it():
    assert mapped({3: "rw"}) == {3: "rw"}
    assert mapped({}) == {}
    assert mapped({3: "r"}, stderr=None, stdin=7) == {3: "r", 2: 2, 0: 7}
    assert mapped({0: PIPE, 1: PIPE, 5: STDOUT, 6: 0}) == {0: "w", 1: "r", 5: STDOUT, 6: 0}


@pytest.mark.parametrize(
    ("fds", "standard", "error", "match"),
    [
        ({0: "w"}, {"stdin": PIPE}, ValueError, "0 of the child is given twice: stdin"),
        ({1: "x"}, {}, ValueError, "'x'"),
        ({1: -7}, {}, ValueError, "-7"),
        ({3: PIPE}, {}, ValueError, "not PIPE"),
        ({1: STDOUT}, {}, ValueError, "not STDOUT"),
        ([3], {}, TypeError, r"fds is a map .*\[3\]"),
        (None, {"stdout": STDOUT}, ValueError, "stdout is PIPE, .*not STDOUT"),
        ({2: STDOUT}, {}, ValueError, "there is no 1"),
        ({"1": "r"}, {}, TypeError, "'1'"),
        ({True: "r"}, {}, TypeError, "True"),
        ({1: None}, {}, TypeError, "not None; {1: 1} has it inherited"),
        ({1: True}, {}, ValueError, "True"),
        ({1: b"r"}, {}, TypeError, "b'r'"),
        (None, {"stdout": "yes"}, ValueError, "stdout is PIPE, .*not 'yes'"),
    ],
)
def test_what_is_of_no_use_is_named(fds, standard, error, match):
    with pytest.raises(error, match=match):
        mapped(fds, **standard)


def test_descriptors_may_be_passed_under_their_own_numbers():
    assert descriptor_map({0: "w", 7: 7}, None, (7, 8), stdin=UNSET, stdout=UNSET, stderr=UNSET) == {
        0: "w", 7: 7, 8: 8,
    }  # fmt: skip
    with pytest.raises(ValueError, match="0 of the child is given twice: fds or its name, and pass_fds"):
        descriptor_map({0: "w"}, None, (0,), stdin=UNSET, stdout=UNSET, stderr=UNSET)


def test_each_wish_gets_its_ends_and_the_childs_are_closed_afterwards():
    with tempfile.TemporaryFile() as file:
        fds = {0: "w", 1: "r", 2: STDOUT, 3: "rw", 4: DEVNULL, 5: file, 6: 1}
        with open_ends(fds) as (theirs, ours):
            assert theirs.keys() == fds.keys()
            assert ours.keys() == {0, 1, 3}
            assert theirs[2] == theirs[1]
            assert theirs[5] == file.fileno()
            assert theirs[6] == 1
            assert stat.S_ISSOCK(os.fstat(theirs[3]).st_mode)
            assert os.fstat(theirs[4]).st_rdev == os.stat(os.devnull).st_rdev
            os.write(ours[0], b"to")
            assert os.read(theirs[0], 9) == b"to"
            os.write(theirs[1], b"from")
            assert os.read(ours[1], 9) == b"from"
            ours[3].send(b"both")
            assert os.read(theirs[3], 9) == b"both"
            assert not any(os.get_inheritable(theirs[number]) for number in (0, 1, 3, 4))
            assert all(os.get_blocking(theirs[number]) for number in (0, 1, 3))
        assert os.read(ours[1], 9) == b""
        assert file.tell() == 0  # the caller's is open
    close_ends(ours)


def test_nothing_is_left_open_when_one_cannot_be_had():
    with tempfile.TemporaryFile() as closed:
        pass
    with pytest.raises(OSError, match="closed") as caught, open_ends({0: "w", 3: "rw", 4: closed}):
        pass
    assert caught.value.errno == errno.EBADF
    with FaultPlan() as plan:
        plan.fail("pipe", 2, errno.EMFILE)
        with pytest.raises(OSError, match="open files"), open_ends({0: "w", 3: "rw", 4: DEVNULL, 1: "r"}):
            pass


def test_a_descriptor_of_the_callers_may_be_under_a_transport():
    read, write = os.pipe()
    handle = Handle(write)
    with open_ends({1: write}) as (theirs, ours):
        assert (theirs, ours) == ({1: write}, {})
    handle.close()
    os.close(read)
