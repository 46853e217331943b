"""Whether a folder's run may go on, and what is said of changes."""

import pytest
from runs import check_equal, contents, records, tiny, toy, write_npz

import train
from attn_jax import workdir

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- resuming ---------------------------------------------------------------------------


def test_a_key_that_may_not_change_is_listed_and_nothing_is_touched(copied):
    before = contents(copied)
    changed = {"seed": 1, "optimizer.learning_rate": 0.5, "mesh.data": 8}
    with pytest.raises(ValueError) as refused:
        train.train(tiny(changed), str(copied))
    message = str(refused.value)
    assert "\n" not in message
    assert "optimizer.learning_rate: 0.002 -> 0.5" in message
    assert "seed: 0 -> 1" in message
    assert "mesh" not in message
    assert contents(copied) == before


def test_what_may_change_is_printed_and_the_run_goes_on(copied, capsys):
    changed = {
        "duration": "9 steps",
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "checkpoint_every": "2 steps",
    }
    state = train.train(tiny(changed), str(copied))
    assert int(state.step) == 9
    printed = capsys.readouterr().out
    assert "resumed from step 8" in printed
    assert "changed duration: 8 steps -> 9 steps" in printed
    assert "changed mesh.fsdp: 1 -> 4" in printed
    assert "WARNING: the new duration moves the schedule" in printed
    assert workdir.load_config(copied)["duration"] == "9 steps"
    assert [line["step"] for line in records(copied) if "train/loss" in line] == list(
        range(1, 10)
    )


def test_the_same_command_after_the_end_changes_no_parameter(finished, copied):
    state = train.train(tiny(), str(copied))
    check_equal(state.params, finished[0].params)


def test_other_data_than_the_run_began_with_is_refused(tmp_path):
    data = tmp_path / "data.npz"
    config = toy({"task.data": str(data), "task.holdout": 0, "duration": "3 steps"})
    write_npz(data, seed=0)
    train.train(config, str(tmp_path / "run"))
    write_npz(data, seed=1)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="data is not what the run in .* began with"):
        train.train(config, str(tmp_path / "run"))
    assert contents(tmp_path / "run") == before
