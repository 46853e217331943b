"""What every recipe promises; recipes are found by glob, so a new one is tested unasked.

What every recipe can show in seconds is asked of each, at its "debug" size; what takes
several runs is asked once per pair of model class and task class.
"""

import ast
import collections
import inspect
import json
import logging
import pkgutil
import re
import runpy
import shutil
import subprocess
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from budgets import check_budget, count_bytes
from kinds import KINDS, RECIPES, ROOT, arrays, debug, shrink
from runs import numbers

import train
from attn_jax import config as config_lib
from attn_jax import derived, evaluation, sections, sharding
from attn_jax.metrics import count_flops
from attn_jax.run import prepare
from configs import common

pytestmark = pytest.mark.usefixtures("quick_compilation")


def losses(workdir):
    """[(step, training loss)] as the run wrote them."""
    lines = numbers(workdir)
    return [(r["step"], r["train/loss"]) for r in lines if "train/loss" in r]


def check_equal(ours, theirs):
    ours, theirs = arrays(ours), arrays(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# --- every recipe -----------------------------------------------------------------------


def test_there_is_a_recipe_and_each_has_a_debug_variant():
    assert RECIPES
    for recipe in RECIPES:
        assert "debug" in runpy.run_path(str(ROOT / recipe))["VARIANTS"], recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_variant_builds_and_survives_json(recipe):
    for variant in runpy.run_path(str(ROOT / recipe))["VARIANTS"]:
        resolved = config_lib.load(f"{ROOT / recipe}:{variant}")
        saved = json.loads(json.dumps(config_lib.to_plain(resolved)))
        again = config_lib.resolve(saved)
        assert config_lib.to_plain(again) == config_lib.to_plain(resolved)
        if sections.find_open(saved["model"]):
            if variant != "debug":  # what is open, data and checkpoint fill in
                with pytest.raises(ValueError, match="only stands for your data"):
                    derived.derive(resolved)
                continue
            (resolved, _), (again, _) = map(derived.derive, (resolved, again))
        assert config_lib.build(again.model) == config_lib.build(resolved.model)
        assert config_lib.build(again.task) == config_lib.build(resolved.task)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_commands_of_recipes_survive_the_shell(recipe):
    """What bash makes of a command as it stands in the file is what absl can parse."""
    text = (ROOT / recipe).read_text().split("Command:")[1].split("Hardware:")[0]
    commands = re.findall(r"^ *(python (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        script = f'python() {{ printf "%s\\n" "$@"; }}\n{command}'
        printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert not printed.stderr
        first, *words = printed.stdout.splitlines()
        assert first in ("train.py", "-m"), command
        for word in words:
            assert "\\" not in word, command
            if word.startswith("--config.init_from="):
                [[path, prefix, skip]] = config_lib.parse(word.partition("=")[2])
                assert path and prefix in ("", "backbone"), (path, prefix, skip)


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if '"DATA"' in (ROOT / r).read_text()]
)
def test_recipes_that_need_data_say_how_to_set_it(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variant = runpy.run_path(str(ROOT / recipe))["VARIANTS"][0]
    config = config_lib.load(f"{ROOT / recipe}:{variant}")
    name = config.task.cls.rpartition(":")[2]
    message = f"config.task.data='DATA' only .*; set --config.task.data=PATH.* {name}"
    with pytest.raises(ValueError, match=message):
        train.train(config, str(tmp_path / "run"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_batch_and_a_step_within_its_budget(recipe):
    run = prepare(debug(recipe), jax.devices()[:1])
    batch = run.place(next(run.read_batches()))
    trace = jax.make_jaxpr(run.make_update(), return_shape=True)
    program, (state, sums) = trace(run.state_shapes, batch)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, run.state_shapes)
    assert all(total.shape == count.shape == () for total, count in sums.values())
    assert "callback" not in str(program)  # nothing goes through the host
    costs = {
        "flops": count_flops(program),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.param_shapes)),
        "bytes of the state": count_bytes(run.state_shapes),
        "bytes of a batch": count_bytes(batch),
    }
    check_budget("step", recipe, costs)


# The recipe of each kind is run to its end below. These have the same classes with other fields,
# so that their evaluations are traced, but not compiled.
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in KINDS])
def test_every_recipe_has_evaluations(recipe):
    run = prepare(debug(recipe), jax.devices()[:1])
    for name, each in run.evaluations.items():
        found = each.metric_names(run.param_shapes)
        assert found is None or all(key.startswith(f"{name}/") for key in found)


# --- every key --------------------------------------------------------------------------


def keys_read_by(file):
    """Keys that a file reads from a config: `config.key`, `run.config.key`, ["key"]."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if not isinstance(node, ast.Attribute | ast.Subscript):
            continue
        holder = node.value
        name = getattr(holder, "id", None) or getattr(holder, "attr", None)
        if name != "config":
            continue
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node.slice, ast.Constant):
            yield node.slice.value


def test_a_run_reads_no_knob_that_common_does_not_explain():
    for file in ("train.py", "attn_jax/run.py"):
        assert set(keys_read_by(file)) <= set(common.get_config()), file


def test_every_knob_of_common_is_read():
    read = {
        key
        for file in (
            "train.py",
            "attn_jax/run.py",
            "attn_jax/optim.py",
            "attn_jax/convert/card.py",
        )
        for key in keys_read_by(file)
    }
    assert set(common.get_config()) - read == set()


def classes_of(section):
    """The classes that a section and those nested in it name."""
    if isinstance(section, dict):
        if "cls" in section:
            yield pkgutil.resolve_name(section["cls"])
        for value in section.values():
            yield from classes_of(value)


@pytest.mark.parametrize("recipe", KINDS)
def test_every_field_of_a_model_or_task_is_read_by_its_class(recipe):
    config = config_lib.to_plain(debug(recipe))
    for cls in [*classes_of(config["model"]), *classes_of(config["task"])]:
        read = set()
        for part in cls.__mro__:  # a task inherits how it reads images
            if part.__module__.startswith("attn_jax."):
                tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
                nodes = ast.walk(tree)
                read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        fields = set(cls.__dataclass_fields__) - {"parent", "name"}
        assert fields - read == set(), cls


# --- every kind -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


Run = collections.namedtuple("Run", "config state workdir compiled")


@pytest.fixture(scope="module")
def straight(kind, tmp_path_factory):
    """A run from start to end, and how often each function was compiled meanwhile."""
    config = debug(
        kind, log_every="1 steps", checkpoint_every="2 steps", **shrink(kind)
    )
    workdir = tmp_path_factory.mktemp("straight")
    compiled = collections.Counter()

    class Count(logging.Handler):
        def emit(self, record):
            words = record.getMessage().split()
            if words[0] == "Compiling":
                compiled[words[1].removeprefix("jit(").removesuffix(")")] += 1

    handler, logger = Count(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            state = train.train(config, str(workdir))
    finally:
        logger.removeHandler(handler)
    return Run(config, state, workdir, compiled)


def test_a_run_of_every_kind_ends_with_finite_losses(straight):
    steps, values = zip(*losses(straight.workdir), strict=True)
    assert steps == tuple(range(1, int(straight.state.step) + 1))
    assert np.isfinite(values).all()


def test_nothing_is_compiled_after_the_first_step(straight):
    assert int(straight.state.step) > 1
    assert straight.compiled["train_step"] == 1
    periodic = [s for s in straight.config.evals.values() if s.every is not None]
    assert straight.compiled["eval_step"] <= len(periodic)


# That a run which is asked to stop saves its last step is tested in test_runtime.py.
def test_a_run_resumed_from_a_checkpoint_equals_a_straight_one_bit_for_bit(
    straight, tmp_path, capsys
):
    total = int(straight.state.step)
    folder = shutil.copytree(straight.workdir, tmp_path / "resumed")
    shutil.rmtree(folder / "checkpoints" / str(total))
    state = train.train(straight.config, str(folder))
    assert f"resumed from step {total - 2}" in capsys.readouterr().out
    check_equal(state, straight.state)
    assert numbers(folder) == numbers(straight.workdir)


def test_an_evaluation_does_not_depend_on_its_batch_size_and_devices(straight):
    config = straight.config
    name = next(name for name, each in config.evals.items() if each.every is not None)
    task = config_lib.build(config_lib.evaluation_task(config, name))
    params = jax.device_get(straight.state.averaged_params)
    last = numbers(straight.workdir)[-1]  # on all devices
    large = {key: value for key, value in last.items() if key.startswith(f"{name}/")}
    for batch_size in (3, 7):
        one = evaluation.Evaluation(
            name,
            config_lib.build(config.model),
            task,
            config.evals[name].split,
            mesh=sharding.make_mesh({}, jax.devices()[:1]),
            batch_size=batch_size,
            key=evaluation.make_key(config.seed),
        )
        results = one.run(params)
        assert results.keys() == large.keys()
        for metric, value in results.items():
            if metric.endswith("accuracy"):  # a sum of ones is exact
                assert large[metric] == value, metric
            else:  # other sums are of float32 in another order
                assert large[metric] == pytest.approx(value, rel=1e-6), metric
    assert one.run(params) == results
