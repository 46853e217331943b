"""A stranger's config: whatever it holds, one line says what is wrong, at once."""

import json
import pathlib
import resource
import time
import zipfile

import jax
import pytest

import attn_jax
from attn_jax import config as config_lib
from attn_jax import sharding
from attn_jax.restore import plan_restore

FIXTURE = pathlib.Path(__file__).parent / "golden" / "workdirs" / "digits_first.zip"
SECONDS, BYTES = 20, 2 * 2**30

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's folder. A damaged config.json is replaced by the one in a checkpoint, where
    there is one, so its checkpoints are kept elsewhere."""
    folder = tmp_path_factory.mktemp("run")
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(folder)
    (folder / "checkpoints").rename(folder / "elsewhere")
    return folder


@pytest.fixture(scope="module")
def saved(workdir):
    return json.loads((workdir / "config.json").read_text())


@pytest.fixture(autouse=True)
def within_limits():
    began, before = time.monotonic(), peak()
    yield
    assert time.monotonic() - began < SECONDS
    assert peak() - before < BYTES


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def nested(depth):
    section = {"cls": "attn_jax.models.resnet:ResNetStem"}
    for _ in range(depth):
        section = {"cls": "attn_jax.models.vit:ViT", "stem": section}
    return section


CATASTROPHIC = r"(\w+/?)+!"
HUGE = "@HUGE@"  # json.dumps refuses integers of more than 4,300 digits
VALUES = [
    ("model.depth", 10**6, "model.depth=1000000 must be from 1 to 256"),
    (
        "model.depth",
        10**4000,
        "model.depth=<integer of 13288 bits> must be an integer of",
    ),
    ("model.depth", True, "model.depth=True must be of type int"),
    ("model.depth", "1", "model.depth='1' must be of type int"),
    ("model.width", 10**9, "model.width=1000000000 must be from 1 to"),
    ("model.num_heads", 0, "model.num_heads=0 must be from 1"),
    ("model.num_classes", 10**12, "model.num_classes=.* must be from 0 to"),
    ("model.registers", 10**9, "model.registers=.* must be from 0 to"),
    ("model.patch_size", [10**9, 1], "model.patch_size=.* must be from 1 to"),
    ("model.norm_epsilon", float("nan"), "model.norm_epsilon=nan must be finite"),
    ("model.layer_scale", float("inf"), "model.layer_scale=inf must be finite"),
    (
        "model.layer_scale",
        HUGE,
        "layer_scale=<integer of 13288 bits> must be of type fl",
    ),
    ("model.stem", nested(30), "nested more than 20 levels"),
    (
        "model.stem",
        {"cls": ["x"]},
        "model.stem.cls=.* must read 'package.module:Class'",
    ),
    ("model.cls", {"cls": 1}, "model.cls=.* must read 'package.module:Class'"),
    ("model", None, "config.model=None must be of type dict"),
    ("model", [1], "config.model=.1. must be of type dict"),
    ("task", 3, "config.task=3 must be of type dict"),
    ("task.data", "x" * 10**7, "10,002,299 characters; a config has at most 1,000,000"),
    ("task.data", "x" * 10**5, "config.task.data has 100,000 characters; a text has"),
    ("task.image_size", 10**7, "task.image_size=10000000 must be from 1 to 8,192"),
    ("task.channels", 10**9, "task.channels=.* must be from 1 to"),
    ("task.holdout", -1, "task.holdout=-1 must be at least 0"),
    ("batch_size", 10**10, "config.batch_size=.* must be from 1 to"),
    ("seed", 10**30, "config.seed=.* must be an integer of at most 64 bits"),
    ("seed", None, "config.seed=None must be of type int"),
    ("optimizer", {"name": ["adamw"]}, "optimizer.name=.'adamw'.: did you"),
    ("optimizer.learning_rate", float("inf"), "learning_rate=inf must be finite"),
    ("optimizer.learning_rate", "fast", "learning_rate='fast' must be of type float"),
    (
        "schedule.warmup",
        "1e999 steps",
        "schedule.warmup=.* must be a number and a unit",
    ),
    ("duration", "9" * 400 + " steps", "duration=.* must be a number and a unit"),
    ("evals", [], "config.evals=.. must be a section"),
    ("evals", {str(i): {} for i in range(20_000)}, "more than 10,000 values"),
    ("evals", {"a": {"task": {"cls": "os:system"}}}, "may only name classes below"),
    (
        "freeze",
        [CATASTROPHIC],
        "freeze=.* must be a regex that cannot take exponential",
    ),
    ("freeze", ["("], r"freeze=.* must be a regular expression \(missing"),
    ("sharding_rules", [[CATASTROPHIC, [None]]], "sharding_rules=.* exponential"),
    ("init_from", [["a", "", CATASTROPHIC]], "init_from=.* exponential"),
    (
        "weight_decay_on",
        ["(" * 5000 + ")" * 5000],
        "must be a regular expression|charac",
    ),
    ("x" * 5000, 1, "nothing reads this key"),
    ("format", 99, "config.format=99 was saved by a newer release"),
    ("format", "1", "config.format='1' must be a number"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    VALUES,
    ids=[f"{v[0][:20]}-{v[2][:20]}" for v in VALUES],
)
def test_a_hostile_value_is_refused_in_one_line(key, value, message, workdir, saved):
    config = dict(saved)
    *parents, last = key.split(".")
    place = config
    for parent in parents:
        place[parent] = dict(place[parent])
        place = place[parent]
    place[last] = value
    text = json.dumps(config).replace(f'"{HUGE}"', "1" + "0" * 4000)
    check_refused(workdir, text, message)


TEXTS = {
    "empty": ("", "is damaged"),
    "no JSON": ("{", "is damaged"),
    "a list": ("[]", "is not the config.json of a run"),
    "a number": ("1e400", "is not the config.json of a run"),
    "nested": ("[" * 500_000, "is damaged.*recursion"),
    "nested sections": ('{"task":' * 100_000, "is damaged.*recursion"),
    "nested closed": (
        '{"task":' * 500 + "1" + "}" * 500,
        "nested more than 20 levels deep",
    ),
    "long": ('{"task": "' + "x" * 10**7 + '"}', "a config has at most 1,000,000"),
    "many keys": (
        '{"task": 1, ' + ",".join(f'"{i}":1' for i in range(10**6)) + "}",
        "a config has at most 1,000,000",
    ),
    "many digits": (
        '{"task": 1' + "0" * 100_000 + "}",
        "is damaged: Exceeds the limit",
    ),
    "an array": ('{"task": {"cls": [' + "1," * 50_000 + "1]}}", "more than 10,000 val"),
    "NUL": ("\0" * 1000, "is damaged"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_config_is_refused_in_one_line(name, workdir):
    check_refused(workdir, *TEXTS[name])


def check_refused(workdir, text, message):
    file = workdir / "config.json"
    before = file.read_text()
    file.write_text(text)
    try:
        with pytest.raises(ValueError, match=message) as error:
            attn_jax.restore(workdir)
        assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    finally:
        file.write_text(before)


def test_the_run_itself_has_nothing_hostile(workdir):
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        attn_jax.restore(workdir)


def test_parameters_larger_than_memory_are_refused_before_they_are_allocated(saved):
    model = saved["model"] | {"width": 2**20, "mlp_width": 2**20, "num_heads": 2**18}
    settings = config_lib.resolve(saved | {"model": model}, trust=("attn_jax",))
    record = {
        "leaves": {},
        "step": 8,
        "row": {"images": [[16, 16, 1], "uint8"], "labels": [[], "int32"]},
    }
    record["row"] |= {"index": [[], "int32"], "valid": [[], "bool"]}
    module, task = (config_lib.build(settings[k]) for k in ("model", "task"))
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    with pytest.raises(ValueError, match="the parameters would need .*largest array"):
        plan_restore(record, settings, module, task, None, mesh)


@pytest.mark.parametrize(
    "setting",
    [
        "model.depth=" + "9" * 5000,
        "model.depth=" + "[" * 100_000,
        "model.depth=" + "(" * 100_000,
        "model." * 500 + "a=1",
        "freeze=['" + CATASTROPHIC + "']",
        "seed=1e400",
        "=1",
        "=",
        ".=1",
        "model..width=1",
    ],
)
def test_a_hostile_override_is_refused_in_one_line(setting, saved):
    with pytest.raises(ValueError) as error:
        config_lib.override(saved, [setting], trust=("attn_jax",))
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
