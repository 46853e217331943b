"""Settings from the command line: read by type, checked by rule, named when wrong."""

import pytest
from test_config import digits

from attn_jax import config as config_lib


@pytest.mark.parametrize(
    "text, value",
    [
        ("seed=3", 3),
        ("duration=20 epochs", "20 epochs"),
        ("clip_norm=2", 2.0),  # an int where a float stands, at the top ...
        ("model.dropout=0", 0.0),  # ... and in a section
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("clip_norm=null", None),
        ("ema_decay=None", None),  # as Python writes it
        ("model.representation_size=32", 32),  # unlisted in the recipe, None by default
        ("optimizer.mu_dtype=bfloat16", "bfloat16"),
        ("model.remat=true", True),
        ("model.remat=True", True),
        ("model.patch_size=[4,2]", [4, 2]),
        ("model.patch_size=(4,2)", [4, 2]),
        ("task.crop_area=[0, 1]", [0.0, 1.0]),
        ("mesh.fsdp=4", 4),
        ("evals.test.every=2 epochs", "2 epochs"),
        ("evals.validation.task.label_smoothing=0", 0.0),
        ('evals.robust={"split": "test", "task": {"flip": true}}', None),
        ("evals={}", {}),
    ],
)
def test_an_override_is_read_by_the_type_of_its_key(text, value):
    config = digits(text)
    key = text.partition("=")[0]
    if key == "evals.robust":
        assert config.evals.robust.task.flip is True
        assert config.evals.robust.every is None
        return
    for part in key.split("."):
        config = config[part]
    config = config_lib.to_plain(config)
    assert (config, type(config)) == (value, type(value))


@pytest.mark.parametrize(
    "text, message",
    [
        ("duration=100", "config.duration=100 must .* example: '500 steps', '10 epoch"),
        ("batch_size=true", "config.batch_size=True must be of type int"),
        ("seed=1.5", "config.seed=1.5 must be of type int"),
        ("mesh.data=two", "config.mesh.data='two' must be of type int"),
        ("clip_norm=much", "config.clip_norm='much' must be of type float"),
        ("model.width=1.5", "config.model.width=1.5 must be of type int"),
        ("model.width=true", "config.model.width=True must be of type int"),
        ("model.width=null", "config.model.width=None must be of type int"),
        ("model.dropout=high", "config.model.dropout='high' must be of type float"),
        ("model.remat=1", "config.model.remat=1 must be of type bool"),
        (
            "model.patch_size=[2,2,2]",
            r"patch_size=\[2, 2, 2\] must be of type int \| tup",
        ),
        ("model.pool=mean", "config.model.pool='mean' must be of type Literal"),
        ("optimizer.b1=low", "config.optimizer.b1='low' must be of type float"),
        (
            "schedule.warmup=5",
            "warmup=5 must be of type str. For .*: '500 steps', '10 ",
        ),
        (
            "duration=100",
            "config.duration=100 must be of type str. For .*: '500 steps'",
        ),
        ("log_every=true", "log_every=True must be of type str. For .*: '500 steps'"),
        ("seed=true", "config.seed=True must be of type int"),
        ("batch_size=True", "config.batch_size=True must be of type int"),
        ("deterministic=1", "config.deterministic=1 must be of type bool"),
        ("clip_norm=true", "config.clip_norm=True must be of type float"),
        ("mesh.data=true", "config.mesh.data=True must be of type int"),
        ("profile=[true, false]", "config.profile=.* must be of type list.int"),
        (
            "init_from=3",
            r"init_from=3 must .*: runs/digits, or \[\[\"runs/digits\", \"\"",
        ),
        (
            "evals.test.every=5",
            r"every=5 must be of type str \| None. For example: '500 steps', '10",
        ),
        ("evals.test=null", "config.evals.test=None must be a section"),
        ("evals.test.task.flip=1", "evals.test.task.flip=1 must be of type bool"),
        ("evals=null", "config.evals=None must be a section; {} is none"),
        ('evals={"test": ', "is neither JSON nor a Python literal"),
        (
            'init_from=["runs/a"]',
            r"config.init_from=.*For example: runs/digits, or \[\[\"runs/digits\"",
        ),
        ('init_from=[["runs/a"]]', "config.init_from=.*tuple.str, str, str"),
        ('learning_rate_multipliers=["a", 1]', "learning_rate_multipliers=.*example"),
        ("freeze=[1]", r"config.freeze=\[1\] must be of type list.str"),
        ("model.dtype=foo", "config.model.dtype='foo': Known: 'float32'"),
    ],
)
def test_a_value_of_another_type_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        digits(text)


@pytest.mark.parametrize(
    "text, bounds",
    [
        ("seed=-1", "at least 0"),
        ("batch_size=0", "from 1 to 16,777,216"),
        ("keep_latest=0", "at least 1"),
        ("ema_decay=1.5", "at least 0 and less than 1"),
        ("ema_decay=1.0", "at least 0 and less than 1"),
        ("model.depth=-1", "from 1 to 256"),
        ("model.depth=1000000", "from 1 to 256"),
        ("model.num_heads=0", "from 1 to 1,048,576"),
        ("model.patch_size=[4,0]", "from 1 to 8,192"),
        ("model.dropout=1.5", "from 0 to 1"),
        ("model.dropout=-0.5", "from 0 to 1"),
        ("task.label_smoothing=-1", "from 0 to 1"),
        ("evals.test.batch_size=0", "from 1 to 16,777,216"),
        ("clip_norm=0", "more than 0"),
        ("clip_norm=NaN", "finite"),
        ("clip_norm=1e400", "finite"),
        ("seed=1" + "0" * 30, "an integer of at most 64 bits"),
        ("watchdog_seconds=Infinity", "finite"),
        ("learning_rate_multipliers=[['a', 0]]", "more than 0"),
        ("learning_rate_multipliers=[['a', [1, -1]]]", "more than 0"),
        ("optimizer.learning_rate=-1", "at least 0"),
        ("optimizer.learning_rate=Infinity", "finite"),
        ("optimizer.weight_decay=-0.1", "at least 0"),
        ("optimizer.b1=1", "at least 0 and less than 1"),
        ("optimizer.b2=-0.1", "at least 0 and less than 1"),
        ("optimizer.eps=0", "more than 0"),
        ("schedule.final=2", "from 0 to 1"),
        ("model.head_bias_init=NaN", "finite"),
        ("init_from=[['', '', '']]", "a path or name such as 'runs/digits', not empty"),
        ("task.data=", "a path or name such as 'runs/digits', not empty"),
        ("evals.test.task.label_smoothing=2", "from 0 to 1"),
    ],
)
def test_a_number_out_of_bounds_is_refused(text, bounds):
    key, _, value = text.partition("=")
    # The exact end, so that "at least 1" does not pass for "at least 1 and ...".
    with pytest.raises(ValueError, match=rf"config.{key}=.* must be {bounds}\.$"):
        digits(text)


@pytest.mark.parametrize(
    "text, close",
    [
        ("batchsize=8", "batch_size"),
        ("modle.width=8", "model"),
        ("model.widht=8", "width"),
        ("task.image_sise=8", "image_size"),
        ("optimizer.learning_rat=0.1", "learning_rate"),
        ("schedule.warm_up=5 steps", "warmup"),
        ("mesh.dat=8", "data"),
        ("evals.test.splt=train", "split"),
        ("evals.test.task.hold_out=5", "holdout"),
    ],
)
def test_a_misspelt_key_names_the_close_one(text, close):
    key = text.partition("=")[0]
    wrong = "modle" if key.startswith("modle") else key
    with pytest.raises(
        ValueError, match=f"config.{wrong}: nothing reads .*'{close}'\\?"
    ):
        digits(text)


@pytest.mark.parametrize(
    ("key", "nested"),
    [
        ("learning_rate", "'optimizer.learning_rate'"),
        ("warmup", "'schedule.warmup'"),
        ("width", "'model.width'"),
        ("data", "'mesh.data' or 'task.data'"),
        ("split", "'evals.test.split' or 'evals.validation.split'"),
    ],
)
def test_a_key_of_a_section_given_at_the_top_is_named_by_its_path(key, nested):
    with pytest.raises(ValueError, match=f"config.{key}: nothing .* mean {nested}"):
        digits(f"{key}=1")


@pytest.mark.parametrize("key", ["log_every", "checkpoint_every", "evals.test.every"])
def test_nothing_happens_every_zero_steps(key):
    with pytest.raises(ValueError, match=f"config.{key}='0 steps' must be more than"):
        digits(f"{key}=0 steps")
    with pytest.raises(ValueError, match=f"{key}='often' must be a number and a unit"):
        digits(f"{key}=often")
