"""The files of a run: locked by one writer, mended or named when damaged."""

import errno
import fcntl
import json
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from attn_jax import migrations, workdir
from attn_jax.checkpoint_reader import CheckpointReader

# --- one writer -----------------------------------------------------------------------


HOLDER = """
import sys, time
from attn_jax import workdir
with workdir.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_with_the_name_of_the_first_until_that_one_dies(
    tmp_path,
):
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with (
                pytest.raises(ValueError, match=f"in use by process {holder.pid} on ."),
                workdir.lock(tmp_path),
            ):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with workdir.lock(tmp_path):  # the file is still there, its owner is not
        assert (tmp_path / ".lock").exists()


def test_a_lock_leaves_no_trace_in_an_empty_or_a_filled_folder(tmp_path):
    with workdir.lock(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with workdir.lock(tmp_path / "c"):
        (tmp_path / "c/file").touch()
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["file"]
    with pytest.raises(KeyError), workdir.lock(tmp_path / "d"):
        raise KeyError
    assert not (tmp_path / "d").exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(ValueError, match=r"run is a file; --workdir must name a folder"),
        workdir.lock(tmp_path / "run"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_lock_is_held_once_within_a_process_too(tmp_path):
    with workdir.lock(tmp_path):
        with pytest.raises(ValueError, match="in use by process"):
            with workdir.lock(tmp_path):
                pass
        with pytest.raises(ValueError, match="in use by process"):  # not released
            with workdir.lock(tmp_path):
                pass
    with workdir.lock(tmp_path):
        pass


def test_a_file_that_was_removed_while_it_was_opened_is_not_the_lock(
    tmp_path, monkeypatch
):
    """Else two runs could each hold a lock on a file of their own."""
    path, flock = tmp_path / ".lock", fcntl.flock
    path.touch()
    calls = []

    def remove_first(file, operation):
        if not calls:
            path.unlink()
        calls.append(operation)
        return flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with workdir.lock(tmp_path):
        assert len(calls) == 2 and path.read_text().startswith("process ")


def test_a_full_disk_is_named_by_the_folder_that_cannot_be_locked(
    tmp_path, monkeypatch
):
    def fail(path, say):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir, "acquire_lock", fail)
    with (
        pytest.raises(OSError, match=f"{tmp_path} cannot be written: No space left"),
        workdir.lock(tmp_path),
    ):
        raise AssertionError("it is not locked")


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with workdir.lock(tmp_path, said.append):
        pass
    assert "cannot be locked (No locks available)" in said[0]


def test_the_printed_command_is_split_by_a_shell_as_it_was_meant(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/my venv/bin/python")
    command = workdir.format_evaluate_command(
        "runs/it's a run", best=True, trust=["mine"]
    )
    assert shlex.split(command) == [
        *("/my venv/bin/python", "-m", "attn_jax", "evaluate"),
        *("--workdir=runs/it's a run", "--step=best", "--trust=mine"),
    ]
    # With the environment active, its name is enough.
    monkeypatch.setattr(shutil, "which", lambda name: "/my venv/bin/python")
    assert workdir.format_evaluate_command("runs/a") == (
        "python -m attn_jax evaluate --workdir=runs/a"
    )


# --- config ---------------------------------------------------------------------------


CONFIG = migrations.migrate(
    {"task": {"cls": "attn_jax.tasks.classify:Classify"}, "seed": 3}
)


class Checkpoints(CheckpointReader):
    """Checkpoints of which the newest has this config."""

    def __init__(self, config):
        self.record = config and {"step": 8, "config": config}

    def newest_record(self):
        return self.record


@pytest.mark.parametrize(
    ("text", "word"),
    [(None, "missing"), ("", "damaged"), ('{"task": {', "damaged"), ("[]", "damaged")],
)
def test_a_config_that_is_lost_is_taken_from_the_newest_checkpoint(
    text, word, tmp_path
):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    said = []
    found = workdir.recover_config(tmp_path, Checkpoints(CONFIG), said.append)
    assert found == CONFIG
    assert f"config.json is {word}; the config of the checkpoint of step 8" in said[0]


def test_a_whole_config_is_used_and_nothing_said(tmp_path):
    workdir.save_config(tmp_path, {**CONFIG, "seed": 4})
    said = []
    found = workdir.recover_config(tmp_path, Checkpoints(CONFIG), said.append)
    assert found == {**CONFIG, "seed": 4} and said == []


def test_without_a_checkpoint_a_missing_config_is_none_and_a_damaged_one_an_error(
    tmp_path,
):
    assert workdir.recover_config(tmp_path, Checkpoints(None)) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged: .* or remove it"):
        workdir.recover_config(tmp_path, Checkpoints(None))


def test_a_config_of_another_program_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"is not the config\.json of a run"):
        workdir.load_config(tmp_path)


# --- assets ---------------------------------------------------------------------------


ASSETS = {"vocab.txt": "[PAD]\nGrüße\r\n", "images.json": '{"labels": ["a"]}'}


@pytest.fixture
def saved(tmp_path):
    workdir.save_assets(tmp_path, ASSETS)
    return tmp_path


def test_assets_come_back_as_they_were_saved(saved, tmp_path):
    assert workdir.load_assets(saved) == ASSETS
    assert workdir.load_assets(tmp_path / "elsewhere") == {}
    workdir.save_assets(saved, ASSETS)
    with pytest.raises(
        ValueError, match=r"vocab\.txt differs from what the data gives"
    ):
        workdir.save_assets(saved, {"vocab.txt": "[PAD]\nGrüße\n"})


@pytest.mark.parametrize("name", [*ASSETS, "digests.json"])
@pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "flipped"])
def test_an_asset_that_is_damaged_is_named(name, damage, saved):
    file = saved / "assets" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "removed":
        file.unlink()
    else:
        kept = {"emptied": b"", "cut": data[: len(data) // 2], "flipped": data}
        file.write_bytes(kept[damage])
    with pytest.raises(ValueError, match="is missing or has changed") as error:
        workdir.load_assets(saved)
    # A flipped digest accuses its file; the message names digests.json as well.
    assert name in str(error.value) and "\n" not in str(error.value)


def test_digests_that_point_out_of_the_folder_are_refused(saved):
    (saved / "assets/digests.json").write_text(json.dumps({"../config.json": "0"}))
    with pytest.raises(ValueError, match=r"digests\.json is missing or has changed"):
        workdir.load_assets(saved)


def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = workdir.load_assets(saved)

    def fail(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = workdir.resolve_folder(saved) / "config.json"
    workdir.write_text(file, "old")
    monkeypatch.setattr(type(file), "replace", fail)
    with pytest.raises(OSError, match=r"config\.json cannot be written: No space left"):
        workdir.write_text(file, "new")
    assert file.read_text() == "old" and workdir.load_assets(saved) == before
