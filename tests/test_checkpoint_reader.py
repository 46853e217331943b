"""Checkpoints read back: what is damaged is not trusted, what is not stays in place."""

import contextlib
import errno
import os
import pathlib
import re
import resource
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import states
from states import BEST, RECORD, accuracy, bits, blank, start

from attn_jax import checkpoint, checkpoint_reader
from attn_jax.damage import Damaged, Removed

# Fixtures are found by their name in the module.
original, workdir, opened = states.original, states.workdir, states.opened


# --- damage ---------------------------------------------------------------------------


def truncate(folder):
    """Cuts every file of the arrays in half, as a full disk might have."""
    for file in (folder / "state").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit_of_an_array(folder):
    """Orbax would restore this without a word."""
    needle = np.asarray(start(int(folder.name)).params["dense"]["kernel"]).tobytes()
    for file in (folder / "state").rglob("*"):
        data = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        if (at := data.find(needle[1000:1032])) >= 0:
            data[at] ^= 1
            file.write_bytes(bytes(data))
            return
    raise AssertionError("the array lies in no file as it is in memory")


def flip_a_bit_of_the_index(folder):
    file = folder / "state" / "manifest.ocdbt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def delete_the_record(folder):
    shutil.rmtree(folder / "record")


def truncate_the_record(folder):
    file = folder / "record" / "metadata"
    file.write_bytes(file.read_bytes()[:100])


def change_the_record(folder):
    """It still is JSON, and by its shapes the checkpoint of another model."""
    file = folder / "record" / "metadata"
    text = file.read_text()
    assert "[64, 64]" in text
    file.write_text(text.replace("[64, 64]", "[64, 65]"))


DAMAGES = {
    truncate: ".",
    flip_a_bit_of_an_array: r"(params|average)/.*kernel has digest \d+, but \d+ was saved",
    flip_a_bit_of_the_index: ".",
    delete_the_record: ".",
    truncate_the_record: ".",
    change_the_record: "its record has changed",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    damage, workdir, opened
):
    damage(workdir / "checkpoints" / "3")
    checkpoints = opened(workdir, keep_latest=3, keep_best=BEST)
    state, record = checkpoints.restore_latest(blank(start(1)))
    assert record["step"] == 2
    assert bits(state) == bits(start(2))
    [said] = checkpoints.said
    assert re.fullmatch(
        f"the checkpoint of step 3 is damaged: {DAMAGES[damage]}.*. Trying the one "
        "before it.",
        said,
    )
    assert checkpoints.best_step() == 2
    # Nothing is deleted, and the step can be saved again.
    [aside] = (workdir / "damaged").iterdir()
    assert aside.name.startswith("3-") and (aside / "state").is_dir()
    assert checkpoints.steps() == [2, 1]
    checkpoints.finish(start(3), RECORD, accuracy(0.9))
    assert (checkpoints.steps(), checkpoints.best_step()) == ([3, 2, 1], 3)
    assert bits(checkpoints.restore(3, blank(start(3)))) == bits(start(3))


def test_a_damaged_checkpoint_that_was_asked_for_is_named(workdir, opened):
    flip_a_bit_of_an_array(workdir / "checkpoints" / "2")
    checkpoints = opened(workdir)
    with pytest.raises(Damaged, match="of step 2 is damaged: .*kernel has digest"):
        checkpoints.restore(2, blank(start(2)))
    # What is not restored is not looked at: a part may be whole.
    part = {"opt_state": blank(start(2)).opt_state}
    assert bits(checkpoints.restore(2, part)) == bits({"opt_state": start(2).opt_state})


def test_the_best_checkpoint_is_unknown_where_a_record_is_damaged(workdir, opened):
    truncate_the_record(workdir / "checkpoints" / "2")  # the best of the three
    reader = checkpoint_reader.CheckpointReader(workdir, keep_best=BEST)
    with pytest.raises(Damaged, match="of step 2 is damaged: .* may be the best one"):
        reader.best_step()
    reader.close()
    assert checkpoint_reader.CheckpointReader(workdir).best_step() is None
    # A run goes on from the newest one, says so, and deletes nothing that is damaged.
    checkpoints = opened(workdir, keep_latest=1, keep_best=BEST)
    state, _ = checkpoints.restore_latest(blank(start(1)))
    assert bits(state) == bits(start(3))
    [said] = checkpoints.said
    assert said.startswith("WARNING: the checkpoint of step 2 is damaged: ")
    checkpoints.finish(start(4), RECORD, accuracy(0.1))
    assert checkpoints.steps() == [4, 2, 1]  # 1 is the best of those that are ranked


def test_where_every_checkpoint_is_damaged_none_is_moved(workdir, opened):
    for at in (1, 2, 3):
        truncate(workdir / "checkpoints" / str(at))
    checkpoints = opened(workdir)
    with pytest.raises(
        ValueError,
        match=r"every checkpoint .* is damaged \(steps \[3, 2, 1\]\).* away to start",
    ):
        checkpoints.restore_latest(blank(start(1)))
    assert len(checkpoints.said) == 3
    assert checkpoints.steps() == [3, 2, 1] and not (workdir / "damaged").exists()


def test_a_save_that_was_killed_half_way_is_no_checkpoint(workdir, opened):
    folder = workdir / "checkpoints/3"
    folder.rename(folder.with_name("3.orbax-checkpoint-tmp"))
    checkpoints = opened(workdir, keep_latest=3)
    _, record = checkpoints.restore_latest(blank(start(1)))
    assert record["step"] == 2
    assert checkpoints.said == []
    checkpoints.finish(start(3), RECORD, {})
    assert checkpoints.steps() == [3, 2, 1]


def test_a_checkpoint_of_another_model_is_no_damage(workdir, opened):
    checkpoints = opened(workdir)
    with pytest.raises(
        ValueError,
        match=r"step 3 is of another model: .*\(64, 64\) there, \(2, 2\) here",
    ) as error:
        checkpoints.restore_latest(blank(start(1, large=(2, 2))))
    # kernel, its two moments and its average: three are shown
    assert "and 1 more. Restore it with the config" in str(error.value)
    params = {"head": blank(start(3)).params["dense"]}
    with pytest.raises(ValueError, match="params/head/bias is not in the checkpoint"):
        checkpoints.restore(3, {"params": params})
    assert checkpoints.steps() == [3, 2, 1]


# --- storage in trouble -----------------------------------------------------------------


def a_file_of_the_arrays(folder):
    return max((folder / "state").rglob("*"), key=lambda file: file.stat().st_size)


def the_index(folder):
    return folder / "state/manifest.ocdbt"


def the_folder_of_the_arrays(folder):
    return folder / "state"


def the_folder_of_the_record(folder):
    return folder / "record"


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@contextlib.contextmanager
def as_nobody():
    """Root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "part",
    [
        a_file_of_the_arrays,
        the_index,
        the_folder_of_the_arrays,
        the_folder_of_the_record,
    ],
    ids=lambda part: part.__name__,
)
def test_a_file_that_may_not_be_read_ends_the_run_and_moves_nothing(
    part, original, opened
):
    """In `original`, since nobody but its owner may look into pytest's own folders."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        workdir = pathlib.Path(shutil.copytree(original, f"{parent}/run"))
        for folder in (workdir, workdir / "checkpoints"):
            folder.chmod(0o755)
        checkpoints = opened(workdir, keep_latest=3)
        checkpoints.restore(3, blank(start(3)))  # imports what nobody may not read
        before = contents(workdir)
        file = part(workdir / "checkpoints/3")
        mode = file.stat().st_mode
        file.chmod(0)
        try:
            with (
                as_nobody(),
                pytest.raises(OSError, match="3 cannot be read: .*denied"),
            ):
                checkpoints.restore_latest(blank(start(3)))
        finally:
            file.chmod(mode)
        assert checkpoints.said == [] and contents(workdir) == before
        state, _ = checkpoints.restore_latest(blank(start(3)))
        assert bits(state) == bits(start(3))


def test_too_many_open_files_end_the_run_and_move_nothing(workdir, opened):
    checkpoints = opened(workdir, keep_latest=3)
    checkpoints.record(3)
    before = contents(workdir)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                files.enter_context(open(os.devnull))
        with pytest.raises(OSError, match="Too many open files"):
            checkpoints.restore_latest(blank(start(3)))
    assert checkpoints.said == [] and contents(workdir) == before
    assert bits(checkpoints.restore(3, blank(start(3)))) == bits(start(3))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        RuntimeError("cannot start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_trouble_while_restoring_moves_nothing(
    error, workdir, opened, monkeypatch
):
    checkpoints = opened(workdir, keep_latest=3)
    before = contents(workdir)

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    with pytest.raises(OSError, match="3 cannot be read: .*Nothing was changed"):
        checkpoints.restore_latest(blank(start(3)))
    assert checkpoints.said == [] and contents(workdir) == before


@pytest.mark.parametrize("wrong", [None, np.zeros(3), jnp.zeros(2, jnp.bfloat16)])
def test_a_leaf_that_comes_back_as_another_array_is_damage(
    wrong, workdir, opened, monkeypatch
):
    """Orbax gives None for an array that its metadata no longer lists."""
    checkpoints = opened(workdir, keep_latest=3)
    restore = ocp.PyTreeCheckpointHandler.restore

    def lose_a_leaf(self, directory, *arguments, **options):
        state = restore(self, directory, *arguments, **options)
        if "/3/" in str(directory):
            state.params["dense"]["bias"] = wrong
        return state

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", lose_a_leaf)
    _, record = checkpoints.restore_latest(blank(start(3)))
    assert record["step"] == 2
    assert "of step 3 is damaged: params/dense/bias came back as" in checkpoints.said[0]


def test_a_checkpoint_with_arrays_of_another_type_is_of_another_model(workdir, opened):
    like = {"params": {"dense": {"bias": jnp.zeros(3)}}}
    with pytest.raises(ValueError, match="bias is bfloat16 there, float32 here"):
        opened(workdir).restore(3, like)


def test_a_checkpoint_that_was_removed_is_not_called_damaged(workdir, opened):
    checkpoints = opened(workdir)
    checkpoints.record(3)
    shutil.rmtree(workdir / "checkpoints/3")
    with pytest.raises(Removed, match="of step 3 was removed while it was read"):
        checkpoints.restore(3, blank(start(3)))
    assert checkpoints.steps() == [2, 1]


def test_a_record_of_a_later_release_is_refused(workdir, opened, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "FORMAT", checkpoint.FORMAT - 1)
    with pytest.raises(
        ValueError, match=f"format {checkpoint.FORMAT}, .* update attn_"
    ):
        opened(workdir).restore_latest(blank(start(3)))
