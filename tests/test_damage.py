"""What a failed read means: only lost or changed content is damage."""

import errno
import json

import pytest
from etils import epath

from attn_jax.damage import Damaged, Removed, explain_failure, shorten

STATE = 'Error reading "params.kernel/0.0" in OCDBT database at local file "/runs/a/"'


def caused(error, cause):
    error.__cause__ = cause
    return error


def parse_error():
    try:
        json.loads('{"a": ')
    except ValueError as error:
        return error


DAMAGE = [
    parse_error(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    IsADirectoryError(errno.EISDIR, "Is a directory"),
    KeyError("tree_metadata"),
    ValueError(f"DATA_LOSS: {STATE}: CRC-32C checksum verification failed"),
    ValueError(f"OUT_OF_RANGE: {STATE}: Requested byte range [0, 520) is not valid"),
    ValueError(f"NOT_FOUND: {STATE}: [os_error_code='2']"),
    caused(
        Exception("Encountered error while reading array index: ()"),
        ValueError(f"FAILED_PRECONDITION: {STATE}: Truncated Zstd-compressed stream"),
    ),
]
TROUBLE = [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ESTALE, "Stale file handle"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    MemoryError(),
    RuntimeError("can't start new thread"),
    ImportError("No module named 'gcsfs'"),
    ValueError(f"PERMISSION_DENIED: {STATE}: Permission denied [os_error_code='13']"),
    ValueError(f"RESOURCE_EXHAUSTED: {STATE}: Too many open files"),
    ValueError(f"FAILED_PRECONDITION: {STATE}: Not a directory [os_error_code='20']"),
    ValueError(f"UNKNOWN: {STATE}: Input/output error [os_error_code='5']"),
    caused(
        Exception("Encountered error while reading array index: ()"),
        ValueError(f"UNAVAILABLE: {STATE}: connection reset"),
    ),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "3" / "state").mkdir(parents=True)
    (tmp_path / "3" / "state" / "manifest").write_bytes(b"x")
    return epath.Path(tmp_path / "3")


@pytest.mark.parametrize("error", DAMAGE, ids=lambda e: str(e)[:40])
def test_lost_or_unparsable_content_is_damage(error, folder):
    explained = explain_failure(error, 3, folder)
    assert type(explained) is Damaged
    assert str(explained).startswith("the checkpoint of step 3 is damaged: ")


@pytest.mark.parametrize("error", TROUBLE, ids=lambda e: f"{type(e).__name__} {e}"[:60])
def test_trouble_with_the_storage_is_no_damage_and_says_its_cause(error, folder):
    explained = explain_failure(error, 3, folder)
    assert type(explained) is OSError
    cause = str(error.__cause__ or error) or "out of memory"
    assert cause[-15:] in str(explained) and "\n" not in str(explained)
    assert "Nothing was changed" in str(explained)


def test_a_file_that_cannot_be_opened_is_trouble_whatever_orbax_made_of_it(
    folder, monkeypatch
):
    """Orbax takes a folder that it may not list for an empty one."""

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(folder), "open", refuse)
    explained = explain_failure(ValueError("pytree structure error"), 3, folder)
    assert type(explained) is OSError and "Permission denied" in str(explained)


def test_a_checkpoint_that_is_gone_was_removed(folder):
    folder.rename(folder.parent / "4")
    explained = explain_failure(FileNotFoundError("3 not found"), 3, folder)
    assert type(explained) is Removed and "name a newer step" in str(explained)


def test_a_long_message_keeps_its_end_where_tensorstore_names_the_cause():
    text = f"DATA_LOSS: {STATE * 9}: checksum failed [tensorstore_spec='...']\nmore"
    short = shorten(ValueError(text))
    assert len(short) <= 200 and short.startswith("DATA_LOSS: Error reading")
    assert short.endswith(": checksum failed")
