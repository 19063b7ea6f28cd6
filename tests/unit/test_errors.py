from __future__ import annotations

import errno
import pickle

import pytest

from crailpy import errors, native
from crailpy.errors import CrailError


@pytest.mark.parametrize("cls", errors.BY_CODE.values())
def test_every_error_pickles_with_all_it_knows(cls: type[CrailError]) -> None:
    error = cls("what happened", path="/a/b", server="s1", hint="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (again.code, again.path, again.server, again.hint) == (cls.code, "/a/b", "s1", "do this")
    assert str(again) == str(error)
    assert again.args == error.args


def test_a_batch_error_pickles_with_its_results() -> None:
    error = errors.BatchError(results=[1, errors.NotFoundError(path="/x")])
    again = pickle.loads(pickle.dumps(error))
    assert again.results[0] == 1
    assert again.results[1].path == "/x"


def test_errors_are_what_a_person_would_catch() -> None:
    for cls, builtins in {
        errors.NotFoundError: (FileNotFoundError, KeyError),
        errors.ExistsError: (FileExistsError,),
        errors.IsContainerError: (IsADirectoryError,),
        errors.NotContainerError: (NotADirectoryError,),
        errors.InvalidPathError: (ValueError,),
        errors.InvalidArgumentError: (ValueError,),
        errors.AuthError: (PermissionError,),
        errors.DeadlineError: (TimeoutError,),
        errors.UnavailableError: (ConnectionError,),
        errors.SessionLostError: (ConnectionError,),
        errors.ClosedError: (ValueError,),
    }.items():
        assert issubclass(cls, builtins)
        assert issubclass(cls, CrailError)


def test_os_errors_have_their_errno() -> None:
    assert errors.OutOfSpaceError().errno == errno.ENOSPC
    assert errors.QuotaExceededError().errno == errno.EDQUOT
    assert errors.DataLostError().errno == errno.EIO
    assert errors.NotFoundError(path="/p").filename == "/p"


def test_every_status_of_the_core_has_its_error() -> None:
    names = native.status_names()
    for number, cls in errors.BY_STATUS.items():
        assert names[number] == cls.code
        error = errors.from_status(-number, "/p", 3, "h")
        assert type(error) is cls
        assert (error.path, error.server, error.hint) == ("/p", 3, "h")


def test_an_errno_becomes_the_nearest_error() -> None:
    assert isinstance(errors.from_status(-errno.ECONNRESET), errors.UnavailableError)
    assert isinstance(errors.from_status(-errno.ENOMEM), errors.NoMemoryError)
    other = errors.from_status(-errno.EXDEV)
    assert isinstance(other, errors.NativeError)
    assert other.errno == errno.EXDEV


def test_an_unknown_code_is_still_an_error_of_ours() -> None:
    error = errors.from_code("NEWER", "something new", hint="update")
    assert type(error) is CrailError
    assert str(error) == "something new; update"
