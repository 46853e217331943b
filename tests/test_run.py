"""What a run refuses before its first step, and in which words."""

import pytest
from runs import tiny, toy

import train
from attn_jax import run

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 12},
            r"batch_size=12 must be divisible by .* = 8 x 1 x 1 = 8; use 8 or 16",
        ),
        (
            {"micro_batches": 3},
            r"batch_size=16 must be divisible by .* = 8 x 1 x 3 = 24; use 24",
        ),
        ({"batch_size": -16}, "batch_size=-16 must be from 1 to"),
        ({"micro_batches": 0}, "micro_batches=0 must be at least 1"),
        ({"log_every": "0 steps"}, "log_every='0 steps' must be more than zero"),
        (
            {"evals.validation.every": "0 epochs"},
            "evals.validation.every='0 epochs' must be more than zero",
        ),
        (
            {"task.image_size": 9},
            "image is 9x9; patch_size=4 must divide both sides. Change config.task",
        ),
        (
            {"mesh.data": 16},
            "data=16, fsdp=1, tensor=1.* asks for 16 devices, but 8 are here",
        ),
        ({"mesh.data": 4}, "asks for 4 devices, but 8 are here"),
        (
            {"task.data": "nowhere.npz"},
            "'nowhere.npz' does not exist .* Set config.task",
        ),
        ({"model.num_classes": 5}, "the model has 5 classes and the task 10"),
        (
            {"task.num_classes": 5},
            "digits has labels from 0 to 9, but config.task.num_classes",
        ),
        ({"schedule.warmup": "9 steps"}, "takes 9 steps, but the run has 8; shorten"),
        (
            {"freeze": ["nothing"]},
            "config.freeze: the regex 'nothing' matches no param",
        ),
        (
            {"sharding_rules": [["nothing", []]]},
            "config.sharding_rules: the regex 'nothing' matches no parameter",
        ),
        (
            {"keep_best": "max:test/accuracy"},
            "names the evaluation 'test', but those with a cadence are",
        ),
        (
            {"keep_best": "max:validation/acuracy"},
            "'validation/acuracy' is not a metric .* it has validation/accuracy",
        ),
        (
            {"evals.extra": {"split": "held_out"}},  # `every` None: only by `evaluate`
            "config.evals.extra: split='held_out' must be one of 'train', 'val",
        ),
        (
            {"evals.extra": {"split": "held_out", "every": "1 epochs"}},
            "config.evals.extra: split='held_out' must be one of 'train', 'val",
        ),
        (
            {"evals.validation.task": {"data": "nowhere.npz"}},
            "config.evals.validation: 'nowhere.npz' does not exist",
        ),
        ({"model.dtype": "float16"}, "config.model.dtype='float16' loses small"),
        ({"profile": [8, 9]}, r"config.profile=\[8, 9\] must .* from 1 to 8"),
        ({"profile": [5, 3]}, r"config.profile=\[5, 3\] must .* from 1 to 8"),
        ({"profile": [0, 3]}, r"config.profile=\[0, 3\] must .* from 1 to 8"),
        ({"profile": [3]}, r"config.profile=\[3\] must be \[\] or \[first, last\]"),
        ({"keep_best": "validation/loss"}, "must read 'max:name/metric'"),
        ({"duration": "8 stops"}, "'8 stops' must be a number and a unit"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_in_one_line(
    tmp_path, capsys, changes, message
):
    with pytest.raises(ValueError, match=message) as refused:
        # Some are refused by tiny() already.
        train.train(tiny(changes), str(tmp_path / "below/new"))
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())  # no empty folder stays


def test_an_empty_data_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="data holds nothing; expected CLASS/IMAGE"):
        train.train(toy({"task.data": str(tmp_path / "data")}), str(tmp_path / "run"))


def test_an_unknown_optimizer_names_the_known_ones(tmp_path):
    config = tiny().copy_and_resolve_references().unlock()
    config.optimizer = {"name": "adam"}
    with pytest.raises(ValueError, match="name='adam'.*did you mean 'adamw'.*'sgd'"):
        train.train(config, str(tmp_path))


def test_batch_norm_is_refused_with_an_alternative(tmp_path):
    with pytest.raises(ValueError, match="Toy creates .*'batch_stats'.*GroupNorm"):
        train.train(toy({"model.batch_norm": True}), str(tmp_path))


# --- operations -------------------------------------------------------------------------


def test_frozen_parameters_cost_no_operations_backward():
    def count(**changes):
        return run.prepare(tiny(changes)).count_flops()

    everything = count()
    head = 2 * 16 * 8 * 10  # batch, width, classes; two per multiply-add
    only_head = {"freeze": ["(?!head/).*"]}
    assert count(**only_head) == everything // 3 + head
    assert count(**only_head, **{"model.remat": True}) == everything // 3 + head
    # Of the trained model, only the gradient by the images is left out.
    assert everything * 0.9 < count(freeze=["head/bias"]) <= everything
