"""A config from recipe to objects: what is filled in, and what is refused, and how."""

import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from attn_jax import config as config_lib
from attn_jax.models import vit
from attn_jax.models.vit import ViT
from attn_jax.tasks.classify import Classify
from configs import common

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "configs/vit/digits.py")


class Stem(nn.Module):
    features: int = 4
    dtype: str = "float32"


class Body(nn.Module):
    """A module made of modules; `initializer` is a default that JSON cannot hold."""

    width: int
    stem: nn.Module | None = None
    head: nn.Module | None = None
    sides: tuple[int, int] = (3, 5)
    rates: tuple[float, ...] = ()
    inner: Any = None
    initializer: Callable = nn.initializers.zeros
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Regress:
    targets: int = 1
    noise: float = 0.0
    names: list[str] = dataclasses.field(default_factory=list)

    def source(self, split): ...

    def example(self, record, rng): ...

    def inputs(self, batch): ...

    def loss(self, outputs, batch): ...


def toy(**changes):
    """An unresolved config of a toy module and a toy task."""
    config = common.get_config().unlock()
    config.model = {"cls": f"{__name__}:Body", "width": 8}
    config.task = {"cls": f"{__name__}:Regress"}
    for key, value in changes.items():
        config[key] = value
    return config


def section(cls, **fields):
    return {"cls": f"{__name__}:{cls}", **fields}


def digits(*overrides):
    return config_lib.load(f"{DIGITS}:debug", overrides)


# --- loading --------------------------------------------------------------------------


def test_a_recipe_is_loaded_whole_and_locked():
    config = config_lib.load(DIGITS)
    assert config.model.cls == "attn_jax.models.vit:ViT"
    with pytest.raises((AttributeError, KeyError)):
        config.batchsize = 64


def test_a_variant_changes_what_its_recipe_says():
    assert config_lib.load(f"{DIGITS}:base").model.width == 64
    assert digits().model.width == 16


def test_a_misspelt_variant_names_the_known_ones():
    with pytest.raises(
        ValueError, match="'debg' is not a variant.* mean 'debug'"
    ) as error:
        config_lib.load(f"{DIGITS}:debg")
    assert "'base', 'debug'" in str(error.value)


def test_a_missing_recipe_is_named_with_an_example_of_one(tmp_path):
    with pytest.raises(ValueError, match="no file .*/none.py; name a recipe such as"):
        config_lib.load(str(tmp_path / "none.py"))


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is not a Python file. To resume"):
        config_lib.load(str(tmp_path / "config.json"))
    (tmp_path / "sizes.py").write_text("B = 12")
    with pytest.raises(ValueError, match="sizes.py is not a recipe: it needs VARIANTS"):
        config_lib.load(str(tmp_path / "sizes.py"))


def test_a_recipe_without_a_knob_is_sent_to_the_common_ones():
    config = toy()
    del config.clip_norm
    with pytest.raises(ValueError, match="config.clip_norm is missing; start from"):
        config_lib.resolve(config)


# --- defaults -------------------------------------------------------------------------


def test_every_default_is_filled_in():
    config = digits()
    assert config.model.dropout == ViT.dropout == 0.0
    assert config.task.shift_pixels == Classify.shift_pixels == 4
    assert config.optimizer.b2 == 0.999  # of optim.adamw
    assert config.schedule.final == 0.0
    assert config.evals.test.every is None
    assert "parent" not in config.model and "name" not in config.model


def test_a_default_that_json_cannot_hold_stays_with_its_class():
    config = config_lib.resolve(toy())
    assert "initializer" not in config.model
    assert config_lib.build(config.model).initializer is nn.initializers.zeros


def test_defaults_are_not_shared_between_configs():
    first, second = config_lib.resolve(toy()), config_lib.resolve(toy())
    first.task.names.append("x")
    assert second.task.names == [] == Regress().names


def test_a_resolved_config_survives_resolving_and_json():
    nested = toy(
        model=section("Body", width=8, dtype="bfloat16", stem=section("Stem")),
        evals={"probe": {"task": {"noise": 1}}, "own": {"task": section("Regress")}},
    )
    for config in (digits(), config_lib.resolve(nested)):
        plain = config_lib.to_plain(config)
        assert config_lib.to_plain(config_lib.resolve(config)) == plain
        saved = json.loads(json.dumps(plain))
        assert saved == plain
        again = config_lib.resolve(saved)
        assert config_lib.to_plain(again) == plain
        assert config_lib.build(again.model) == config_lib.build(config.model)


def test_resolving_leaves_the_recipe_as_it_was():
    config = toy()
    config_lib.override(config, ["batch_size=7", "model.width=9"])
    assert (config.batch_size, config.model.width) == (128, 8)
    assert "stem" not in config.model


# --- overrides ------------------------------------------------------------------------


def test_a_misspelt_key_of_a_recipe_names_the_close_one():
    with pytest.raises(ValueError, match="config.batchsize: .* mean 'batch_size'"):
        config_lib.resolve(toy(batchsize=8))
    with pytest.raises(ValueError, match="config.model.widht: .* mean 'width'"):
        config_lib.resolve(toy(model=section("Body", width=8, widht=9)))


def test_cls_and_name_decide_which_keys_exist_wherever_they_stand():
    for order in (1, -1):
        settings = ["optimizer.momentum=0.5", "optimizer.name=sgd"][::order]
        assert digits(*settings).optimizer.momentum == 0.5
        settings = ["task.noise=2", f"task.cls={__name__}:Regress"][::order]
        assert config_lib.override(toy(), settings).task.noise == 2.0
    with pytest.raises(ValueError, match="config.optimizer.momentum: nothing reads"):
        digits("optimizer.momentum=0.5")


def test_a_later_override_wins():
    assert digits("seed=1", "seed=2").seed == 2
    whole = 'optimizer={"name": "sgd"}'
    assert digits(whole, "optimizer.name=lamb").optimizer.name == "lamb"


@pytest.mark.parametrize("key, known", [("optimizer", "adamw"), ("schedule", "cosine")])
def test_an_unknown_optimizer_or_schedule_names_the_known_ones(key, known):
    with pytest.raises(ValueError, match=f"config.{key}.name='adamv'.*'{known}'"):
        digits(f"{key}.name=adamv")


def test_a_field_without_a_default_must_be_set():
    with pytest.raises(ValueError, match="config.model.width must be set; it has no"):
        config_lib.resolve(toy(model=section("Body")))


def test_a_section_without_cls_says_what_one_looks_like():
    with pytest.raises(ValueError, match="config.model has no `cls`.*models.vit:ViT"):
        config_lib.resolve(toy(model={"width": 8}))
    with pytest.raises(ValueError, match="config has no `cls`"):
        config_lib.build({"width": 8})


# --- nested sections ------------------------------------------------------------------


def test_a_nested_section_becomes_a_submodule_that_inherits_dtype():
    model = section(
        "Body",
        width=8,
        dtype="bfloat16",
        stem=section("Stem", features=2),
        head=section("Stem", dtype="float32"),
        inner=section("Body", width=4, stem=section("Stem")),
    )
    config = config_lib.resolve(toy(model=model))
    assert config.model.head.features == 4  # defaults are filled in at every depth
    assert config_lib.build(config.model) == Body(
        width=8,
        dtype="bfloat16",
        stem=Stem(features=2, dtype="bfloat16"),
        head=Stem(dtype="float32"),
        inner=Body(width=4, dtype="bfloat16", stem=Stem(dtype="bfloat16")),
    )


def test_a_nested_section_can_be_set_from_the_command_line():
    settings = [f"model.stem.cls={__name__}:Stem", "model.stem.features=6"]
    for order in (1, -1):
        config = config_lib.override(toy(), settings[::order])
        assert config_lib.build(config.model).stem == Stem(features=6)


def test_a_misspelt_key_of_a_nested_section_is_named_by_its_path():
    model = section("Body", width=8, stem=section("Stem", feature=2))
    with pytest.raises(ValueError, match="config.model.stem.feature: .*'features'"):
        config_lib.resolve(toy(model=model))


def test_a_field_that_is_a_module_takes_no_number():
    with pytest.raises(ValueError, match="config.model.stem=3 must be of type"):
        config_lib.resolve(toy(model=section("Body", width=8, stem=3)))


def test_a_built_module_is_hashable_and_has_tuples():
    model = section("Body", width=8, sides=[1, 2], rates=[1, 0.5], inner=[[1], [2]])
    body = config_lib.build(config_lib.resolve(toy(model=model)).model)
    assert (body.sides, body.rates, body.inner) == ((1, 2), (1, 0.5), ((1,), (2,)))
    hash(body)


# --- evaluations ----------------------------------------------------------------------


def test_an_evaluation_is_the_training_task_with_what_differs():
    config = digits("task.holdout=90", 'evals.test.task={"data": "x.npz"}')
    task = config_lib.evaluation_task(config, "test")
    assert task == config_lib.to_plain(config.task) | {"data": "x.npz"}
    assert config_lib.to_plain(config.evals.test.task) == {"data": "x.npz"}


def test_a_change_of_the_training_task_carries_over_to_evaluations():
    saved = config_lib.to_plain(digits())
    config = config_lib.override(saved, ["task.data=x.npz"])
    assert config_lib.evaluation_task(config, "validation")["data"] == "x.npz"


def test_an_evaluation_with_a_class_of_its_own_inherits_nothing():
    evals = {"probe": {"task": section("Regress", noise=2)}}
    config = config_lib.resolve(toy(task=section("Regress", targets=5), evals=evals))
    task = config_lib.build(config_lib.evaluation_task(config, "probe"))
    assert task == Regress(targets=1, noise=2.0, names=())


# --- resuming -------------------------------------------------------------------------


def test_a_resumed_run_lists_what_changed_and_what_may_not():
    old = config_lib.to_plain(digits())
    new = digits(
        "mesh.data=4",
        "duration=9 steps",
        "evals.test.every=5 steps",
        'evals.more={"split": "test"}',
        "model.width=32",
        "optimizer.b1=0.8",
    )
    allowed, forbidden = config_lib.differences(old, new)
    assert forbidden == ["model.width: 16 -> 32", "optimizer.b1: 0.9 -> 0.8"]
    assert allowed[:1] == ["duration: 8 steps -> 9 steps"]
    assert "evals.test.every: None -> 5 steps" in allowed
    assert "evals.more.split: absent -> test" in allowed
    assert allowed[-1] == "mesh.data: -1 -> 4"
    assert config_lib.differences(old, digits()) == ([], [])


def test_of_a_section_of_another_class_only_the_class_is_listed():
    old = config_lib.to_plain(digits())
    bert = config_lib.load("configs/bert/pretrain_stdlib.py:debug")
    new = bert.copy_and_resolve_references().unlock()
    new.task, new.evals = digits().task, digits().evals
    _, forbidden = config_lib.differences(old, new)
    assert [line for line in forbidden if line.startswith(("model", "optimizer"))] == [
        "model.cls: attn_jax.models.vit:ViT -> attn_jax.models.bert:Bert",
        "optimizer.name: adamw -> bert_adamw",
    ]


def test_a_forbidden_change_says_how_to_train_on_with_it():
    message = config_lib.explain_forbidden(
        "runs/my digits", ["optimizer.learning_rate: 0.1 -> 0.2"]
    )
    assert "optimizer.learning_rate: 0.1 -> 0.2. Change them back" in message
    option = shlex.split(message.rstrip("."))[-1].removeprefix("--config.")
    config = digits(option)  # what is printed works when pasted
    assert config_lib.to_plain(config.init_from) == [["runs/my digits", "", ""]]


def test_every_knob_either_may_change_or_may_not():
    assert set(common.get_config()) == {*config_lib.FIXED, *config_lib.MAY_CHANGE}
    assert not set(config_lib.FIXED) & set(config_lib.MAY_CHANGE)


# --- durations ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duration, steps",
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("3 epochs", 30),  # of 100 rows, in batches of 10
        ("0.5 epochs", 5),
        ("1_000 examples", 100),
        ("1,000 examples", 100),
        ("1e3 examples", 100),
        ("1 examples", 1),  # more than nothing is at least a step
        ("0 steps", 0),
    ],
)
def test_a_duration_is_read_by_its_unit(duration, steps):
    assert config_lib.to_steps(duration, batch_size=10, epoch_rows=100) == steps


@pytest.mark.parametrize(
    "duration",
    ["500", "ten epochs", "10 days", "-1 steps", "nan steps", "inf steps", ""],
)
def test_a_duration_without_number_and_unit_is_refused(duration):
    with pytest.raises(ValueError, match=f"duration '{duration}' must .*'500 steps'"):
        config_lib.to_steps(duration, batch_size=10, epoch_rows=100)


# --- building, and whom to trust ------------------------------------------------------


@pytest.mark.parametrize(
    "cls, message",
    [
        ("json:JSONDecoder", "neither a Flax module nor a task .*source, example"),
        ("os:system", "neither a Flax module nor a task"),
        ("attn_jax.runtime:os", "neither a Flax module nor a task"),
        ("attn_jax.models.vit:VIT", "cannot be imported: .*no attribute 'VIT'"),
        ("attn_jax.models.vti:ViT", "cannot be imported: No module named"),
        ("my-package:Model", "cannot be imported: invalid format"),
        ("ViT", "must read 'package.module:Class'"),
        ("attn_jax.models.vit.ViT", "must read 'package.module:Class'"),
        ("attn_jax.runtime:os.system", "must read 'package.module:Class'"),
    ],
)
def test_a_cls_that_is_neither_module_nor_task_is_refused(cls, message):
    with pytest.raises(ValueError, match=f"config.cls='{cls}'.*{message}"):
        config_lib.build({"cls": cls})
    with pytest.raises(ValueError, match=f"config.model.cls='{cls}'"):
        config_lib.resolve(toy(model={"cls": cls}))


HOSTILE = ["os:system", "subprocess:Popen", "attn_jax.runtime:os.system", "attn_jaxx:A"]


@pytest.mark.parametrize("cls", HOSTILE)
@pytest.mark.parametrize("where", ["model", "model.stem", "task", "evals.test.task"])
def test_a_saved_config_names_no_foreign_class_anywhere(cls, where):
    saved = config_lib.to_plain(digits())
    place = saved
    for part in where.split(".")[:-1]:
        place = place[part]
    place[where.split(".")[-1]] = {"cls": cls, "args": "true"}
    if where == "model.stem":  # only where the class is trusted has a field for it
        saved["model"] = {"cls": cls, "stem": {"cls": cls}}
    with pytest.raises(ValueError, match="--trust=|must read 'package.module:Class'"):
        config_lib.resolve(saved, trust=("attn_jax",))


def test_a_refused_package_is_not_even_imported(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "hostile_package.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        "import flax.linen as nn\n\nclass Model(nn.Module):\n    width: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"cls": "hostile_package:Model"}
    saved = config_lib.to_plain(config_lib.resolve(toy())) | {"model": config}
    for refuse in (
        lambda: config_lib.build(config, trust=("attn_jax",)),
        lambda: config_lib.resolve(saved, trust=("attn_jax", __name__)),
    ):
        with pytest.raises(ValueError, match="below attn_jax.*--trust=hostile_package"):
            refuse()
        assert not marker.exists()
        assert "hostile_package" not in sys.modules

    built = config_lib.build(config, trust=("attn_jax", "hostile_package"))
    assert built.width == 1 and marker.exists()
    del sys.modules["hostile_package"]


def test_a_nested_section_is_trusted_no_more_than_its_parent():
    config = section("Body", width=8, inner={"cls": "os:system"})
    with pytest.raises(ValueError, match="--trust=os"):
        config_lib.build(config, trust=(__name__,))


def test_a_trusted_module_does_not_lend_out_what_it_imports(monkeypatch):
    monkeypatch.setattr(vit, "Borrowed", Stem, raising=False)
    config = {"cls": "attn_jax.models.vit:Borrowed"}
    assert config_lib.build(config) == Stem()
    with pytest.raises(ValueError, match="neither a Flax module nor a task"):
        config_lib.build(config, trust=("attn_jax",))


def test_a_config_dict_and_a_dict_build_the_same():
    config = section("Body", width=8, stem=section("Stem"))
    assert config_lib.build(ConfigDict(config)) == config_lib.build(config)
