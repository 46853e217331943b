"""Checkpoints: bit-equal on any mesh, kept as promised, not trusted when damaged."""

import contextlib
import errno
import functools
import os
import pathlib
import re
import resource
import shutil
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from attn_jax import checkpoint, checkpoint_reader, paths, sharding, step
from attn_jax.checkpoint import Checkpoints
from attn_jax.damage import Damaged, Removed

BEST = "max:validation/accuracy"
RECORD = {"config": {"seed": 0}, "data": "fingerprint"}
# Small leaves lie in an index that has checksums; this one lies in a file of its own.
LARGE = (64, 64)


@functools.cache
def start(at, large=LARGE):
    """A small state of step `at`, with every kind of leaf that a run has."""
    rng = np.random.default_rng(at)
    # Any bit pattern, not-a-numbers too: the disk holds these bytes, uncompressed.
    kernel = rng.integers(2**32, size=large, dtype=np.uint32).view(np.float32)
    params = {
        "dense": {
            "kernel": jnp.asarray(kernel),
            "bias": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        }
    }
    state = step.init_state(
        params,
        optax.adam(0.1),
        jax.random.key(at),
        averaged=functools.partial(paths.pick, names={"dense/kernel"}),
    )
    return state.replace(step=jnp.asarray(at, jnp.int32))


def blank(state):
    """Where a state is restored into: a single device."""
    where = sharding.replicated(sharding.make_mesh({}, jax.devices()[:1]))
    return sharding.placed(state, jax.tree.map(lambda _: where, state))


def bits(tree):
    """{name: bytes} of a tree; a random key is shown by its numbers."""

    def data(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return {name: data(leaf) for name, leaf in paths.named_leaves(tree).items()}


def accuracy(value):
    return {"validation/accuracy": value}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A workdir with the checkpoints of steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("original")
    checkpoints = Checkpoints(workdir, keep_latest=3, keep_best=BEST)
    for at, value in ((1, 0.5), (2, 0.75), (3, 0.25)):
        checkpoints.finish(start(at), RECORD, accuracy(value))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def opened():
    """Opens checkpoints that say what they say into the list `said`."""
    made = []

    def open_(workdir, **options):
        said = []
        made.append(Checkpoints(workdir, say=said.append, **options))
        made[-1].said = said
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()


# --- there and back -------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_with_its_record(workdir, opened):
    state, record = opened(workdir).restore_latest(blank(start(3)))
    assert bits(state) == bits(start(3))
    assert jax.tree.structure(state) == jax.tree.structure(start(3))
    assert state.key.dtype == start(3).key.dtype  # a typed key, not its numbers
    expected = {**RECORD, "format": 1, "step": 3, "results": accuracy(0.25)}
    assert {name: record[name] for name in expected} == expected
    assert record["leaves"]["params/dense/bias"]["shape"] == [3]
    assert record["leaves"]["params/dense/bias"]["dtype"] == "bfloat16"


def test_a_relative_workdir_is_saved_to(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    opened("runs/digits").finish(start(1), RECORD, {})
    assert opened(tmp_path / "runs/digits").steps() == [1]


def test_an_older_step_can_be_asked_for(workdir, opened):
    checkpoints = opened(workdir)
    assert checkpoints.steps() == [3, 2, 1]
    assert bits(checkpoints.restore(1, blank(start(1)))) == bits(start(1))


def test_a_new_workdir_has_nothing_to_restore(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_best=BEST)
    assert checkpoints.restore_latest(blank(start(1))) is None
    assert (checkpoints.steps(), checkpoints.best_step()) == ([], None)


def test_parameters_come_back_without_the_rest(workdir, opened):
    like = {"params": blank(start(3)).params}
    restored = opened(workdir).restore(3, like)
    assert bits(restored) == bits({"params": start(3).params})


def layout_on(sizes, count, state):
    mesh = sharding.make_mesh(sizes, jax.devices()[:count])
    rules = [["dense/kernel", ["tensor", "fsdp"]]]
    layout = sharding.param_shardings(mesh, state.params, rules, fsdp_min_elements=1)
    return sharding.state_shardings(mesh, state, state.params, layout)


MESHES = {
    "eight": ({"fsdp": 8}, 8),
    "cube": ({"data": 2, "fsdp": 2, "tensor": 2}, 8),
    "single": ({}, 1),
}


@pytest.mark.parametrize(
    "before, after", [("eight", "cube"), ("cube", "single"), ("single", "eight")]
)
def test_a_state_comes_back_bit_for_bit_on_another_mesh(
    before, after, tmp_path, opened
):
    state = start(1)
    checkpoints = opened(tmp_path)
    split = jax.device_put(state, layout_on(*MESHES[before], state))
    checkpoints.finish(split, RECORD, {})
    layout = layout_on(*MESHES[after], state)
    restored, _ = checkpoints.restore_latest(sharding.placed(state, layout))
    assert bits(restored) == bits(state)
    for leaf, where in zip(
        jax.tree.leaves(restored), jax.tree.leaves(layout), strict=True
    ):
        assert leaf.sharding == where
    assert not split.params["dense"]["kernel"].is_fully_replicated or before == "single"


# --- what stays -----------------------------------------------------------------------


def values_of(mode):
    return [0.1, 0.9, 0.3, 0.9, 0.2, 0.4] if mode == "max" else [9, 1, 7, 1, 8, 6]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("reopened", [False, True])
def test_the_latest_and_the_best_stay(mode, reopened, tmp_path, opened):
    """Also where the run is stopped and resumed between any two saves."""
    options = dict(keep_latest=2, keep_best=f"{mode}:validation/accuracy")
    checkpoints = opened(tmp_path, **options)
    stay = []
    for at, value in enumerate(values_of(mode), start=1):
        if reopened:
            checkpoints = opened(tmp_path, **options)
        state = start(1, large=(2, 2)).replace(step=jnp.asarray(at, jnp.int32))
        checkpoints.finish(state, RECORD, accuracy(float(value)))
        stay.append((checkpoints.steps(), checkpoints.best_step()))
    assert stay == [
        ([1], 1),
        ([2, 1], 2),
        ([3, 2], 2),
        ([4, 3], 4),  # of equals the newest: 2 may go
        ([5, 4], 4),
        ([6, 5, 4], 4),
    ]
    on_disk = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert on_disk == {6, 5, 4}
    assert opened(tmp_path, **options).best_step() == 4


def test_without_keep_best_only_the_latest_stay(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_latest=1)
    for at in (1, 2):
        state = start(1, large=(2, 2)).replace(step=jnp.asarray(at, jnp.int32))
        checkpoints.finish(state, RECORD, accuracy(1.0 / at))
    assert (checkpoints.steps(), checkpoints.best_step()) == ([2], None)


def test_a_result_that_is_absent_or_not_finite_is_never_the_best(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_latest=9, keep_best="min:validation/loss")
    for at, results in enumerate(
        [{}, {"validation/loss": float("nan")}, {"validation/loss": float("-inf")}], 1
    ):
        state = start(1, large=(2, 2)).replace(step=jnp.asarray(at, jnp.int32))
        checkpoints.finish(state, RECORD, results)
        assert checkpoints.best_step() is None
    state = state.replace(step=jnp.asarray(4, jnp.int32))
    checkpoints.finish(state, RECORD, {"validation/loss": 3.0})
    assert checkpoints.best_step() == 4


def test_a_step_that_is_saved_is_not_saved_again(workdir, opened):
    checkpoints = opened(workdir, keep_latest=3)
    before = checkpoints.record(3)
    assert checkpoints.save(start(3), {"data": "another"}, {})
    assert checkpoints.record(3) == before


def test_ranks_is_whether_the_metric_is_there(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_best=BEST)
    assert checkpoints.ranks(accuracy(0.5))
    assert not checkpoints.ranks({"test/loss": 1.0})
    assert not opened(tmp_path).ranks(accuracy(0.5))
    with pytest.raises(
        ValueError, match="'validation/accuracy' is no metric .* validation/loss, .*/f1"
    ):
        checkpoints.ranks({"validation/loss": 1.0, "validation/f1": 1.0})


def test_keep_best_of_no_evaluation_is_refused(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_best=BEST)
    checkpoints.check_ranked_by({"validation", "test"})
    opened(tmp_path).check_ranked_by(())
    with pytest.raises(
        ValueError, match=r"evaluation 'validation', .* are \['test'\]; .* an `every`"
    ):
        checkpoints.check_ranked_by({"test"})


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
    flip_a_bit_of_an_array: r"(params|average)/.*kernel has digest \d+, saved was \d+",
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
        checkpoints.steps()  # orbax imports what nobody may not read
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


# --- disks that cannot be written -----------------------------------------------------


def a_full_disk(path):
    return types.SimpleNamespace(free=10)


def test_a_full_disk_is_said_and_the_next_save_works(tmp_path, opened, monkeypatch):
    checkpoints = opened(tmp_path, keep_best=BEST)
    checkpoints.finish(start(1), RECORD, accuracy(0.5))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", a_full_disk)
        assert not checkpoints.save(start(2), RECORD, accuracy(0.6))
    needed = sum(map(len, bits(start(2)).values())) - 8  # the key is not counted
    [said] = checkpoints.said
    assert said.startswith(f"step 2 was NOT saved in {tmp_path / 'checkpoints'}: ")
    assert f"only 10 bytes are free. {needed:,} bytes are needed; the run goes" in said
    assert checkpoints.best_step() == 1
    assert bits(checkpoints.restore(1, blank(start(1)))) == bits(start(1))

    checkpoints.finish(start(2), RECORD, accuracy(0.6))
    assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 1], 2)
    assert len(checkpoints.said) == 1


def test_the_last_save_gives_up_when_patience_ends(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", a_full_disk)
    ticks = []
    with pytest.raises(
        OSError, match="step 1 could not be saved in .* within 0 s: .* bytes are needed"
    ):
        opened(tmp_path).finish(start(1), RECORD, {}, lambda: ticks.append(1))
    assert ticks == [1]


def test_the_last_save_tries_again_while_patience_lasts(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.01)
    usage, ticks = shutil.disk_usage, []
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: a_full_disk(path) if len(ticks) < 3 else usage(path),
    )
    checkpoints = opened(tmp_path, patience_seconds=60.0)
    checkpoints.finish(start(1), RECORD, {}, lambda: ticks.append(1))
    assert len(ticks) == 3 and checkpoints.steps() == [1]
    assert sum("trying again every" in line for line in checkpoints.said) == 2


def test_a_folder_that_cannot_be_written_is_said_and_works_when_mended(
    tmp_path, opened
):
    checkpoints = opened(tmp_path)
    checkpoints.finish(start(1), RECORD, {})
    folder, away = tmp_path / "checkpoints", tmp_path / "away"
    folder.rename(away)
    folder.write_text("no folder")
    for at in (2, 3):
        saved = checkpoints.save(start(at), RECORD, {})
        assert not saved or not checkpoints._wait(start(at))
        assert any(f"step {at} was NOT saved" in line for line in checkpoints.said)
    folder.unlink()
    away.rename(folder)
    checkpoints.finish(start(4), RECORD, {})
    assert checkpoints.steps() == [4, 1]
    assert bits(checkpoints.restore(4, blank(start(4)))) == bits(start(4))


# Orbax's own thread dies of it, and orbax hands the error on at our next call.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_write_that_fails_in_the_background_is_said_at_the_next_save(
    tmp_path, opened
):
    """No file may grow past 4 KiB, while the array has 16."""
    checkpoints = opened(tmp_path)
    checkpoints.finish(start(1), RECORD, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        checkpoints.save(start(2), RECORD, {})
        checkpoints.save(start(3), RECORD, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert any("was NOT saved" in line for line in checkpoints.said)
    checkpoints.finish(start(4), RECORD, {})
    assert checkpoints.steps() == [4, 1]
    assert bits(checkpoints.restore(4, blank(start(4)))) == bits(start(4))
