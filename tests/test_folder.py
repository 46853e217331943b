"""Paths as users write them."""

import sys

import pytest

from attn_jax import folder, migrations, workdir
from attn_jax.checkpoint_reader import CheckpointReader


def test_a_home_is_expanded_and_a_relative_path_made_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in ("~/run", "run", f"file://{tmp_path}/run"):
        assert str(folder.resolve_folder(text)) == str(tmp_path / "run")
    workdir.save_config("~/run", {"task": {}})
    saved = workdir.load_config(tmp_path / "run")
    assert saved == migrations.migrate({"task": {}})
    assert CheckpointReader("~/run").directory == folder.resolve_folder(
        tmp_path / "run/checkpoints"
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "workdir='' is empty; name a folder"),
        ("  ", "workdir='  ' is empty"),
        ("~nobody-of-this-name/run", "no such user's home"),
        ("gs://bucket/run", "gs://bucket/run needs a package: .*gcsfs"),
        ("s3://bucket/run", "s3://bucket/run needs a package: .*s3fs"),
        ("abc://bucket/run", "abc:// is not supported; use a local path, gs://"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(path, message, monkeypatch):
    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=message) as error:
        folder.resolve_folder(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "gs://bucket/x.npz",
            "gs://bucket/x.npz is a URL, but is read from a local disk",
        ),
        ("~nobody-of-this-name/x.npz", "no such user's home"),
    ],
)
def test_a_path_that_must_be_local_is_no_url(path, message):
    with pytest.raises(ValueError, match=message) as error:
        folder.expand_local(path)
    assert "\n" not in str(error.value)
    assert str(folder.expand_local("file:///a/x.npz")) == "/a/x.npz"
