"""Small runs that tests share: the digits recipe with a tiny ViT, or with a toy model."""

import io
import json
import pathlib
import zipfile

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

import train
from attn_jax import config as config_lib
from attn_jax.paths import named_leaves

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
    "model.depth": 1,
    "model.width": 8,
    "model.mlp_width": 8,
    "model.dropout": 0.0,
    "model.stochastic_depth": 0.0,
}
# A step that changes nothing, for what a run begins with.
FROZEN = {"freeze": [".*"], "ema_decay": None, "duration": "1 steps"} | {
    "schedule": {"name": "constant"},
    "evals": {},
    "keep_best": None,
}


def tiny(changes=()):
    """The digits recipe at "debug" with a ViT of one narrow block, and changes."""
    settings = {**TINY, **dict(changes)}
    return config_lib.load(
        f"{ROOT}/configs/vit/digits.py:debug",
        [f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )


def save_untrained(config, folder):
    """Writes a run's folder as it is at step 0: the training step need not be compiled."""
    run, checkpoints, state, _ = train.begin(config, str(folder))
    checkpoints.finish(state, run.make_record(), {})
    checkpoints.close()


class Toy(nn.Module):
    num_classes: int = 10
    batch_norm: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        x = images.reshape(len(images), -1)
        x = nn.relu(nn.Dense(4, name="hidden")(x))
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return {"logits": nn.Dense(self.num_classes, name="head")(x)}


class Wrapped(nn.Module):
    inner: nn.Module

    def __call__(self, images, *, train=False):
        return self.inner(images, train=train)


def toy(changes=()):
    """The digits recipe at "debug" with the toy model and no evaluations, and changes."""
    config = config_lib.load(f"{ROOT}/configs/vit/digits.py:debug").unlock()
    config.model = {"cls": "runs:Toy"}
    config.sharding_rules = []
    config.evals, config.keep_best = {}, None
    settings = [f"{key}={json.dumps(value)}" for key, value in dict(changes).items()]
    return config_lib.override(config, settings)


def records(folder):
    """The lines of metrics.jsonl."""
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def numbers(folder):
    """All that was logged but times; a line that is being written does not count yet."""
    path = pathlib.Path(folder) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    times = {"seconds", "examples_per_second", "data_wait_fraction", "mfu"}
    return [
        {k: v for k, v in json.loads(line).items() if k not in times} for line in lines
    ]


def contents(folder):
    """{file: its bytes} below a folder."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_equal(ours, theirs):
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def differ(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


def write_npz(path, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (32, 8, 8), np.uint8)
    np.savez(path, x_train=images, y_train=np.arange(32) % 10)


def write_images(folder, damaged=None, seed=0):
    """Two classes of eight images, a pixel larger by seed; one may be cut in half."""
    rng = np.random.default_rng(seed)
    for label in "ab":
        (folder / "train" / label).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(rng.integers(0, 256, (8, 8 + seed), np.uint8))
            image.save(folder / "train" / label / f"{number}.png")
    if damaged:
        path = folder / "train" / damaged
        path.write_bytes(path.read_bytes()[:60])


COLOURS = {"ant": (230, 40, 40), "bee": (40, 220, 40), "cat": (40, 60, 230)}


def encode(colour, size=6, seed=0):
    """A PNG of one colour with some noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size, size, 3))
    pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_classes(path, names, splits):
    """A .zip of SPLIT/CLASS/IMAGE, the images of each class in its own colour."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, number in splits.items():
            for name in names:
                for i in range(number):
                    image = encode(COLOURS.get(name, (9, 9, 9)), seed=i)
                    archive.writestr(f"{split}/{name}/{i}.png", image)
    return str(path)


def tell_colours(data, names=None, changes=()):
    """A run that learns the three classes of `write_classes`, its head in this order."""
    settings = {
        "task.data": data,
        "task.image_size": 6,
        "task.channels": 3,
        "task.holdout": 0,
        "task.crop": "none",
        "task.num_classes": 3,
        "task.class_names": names,
        "model.num_classes": 3,
        "batch_size": 8,
        "optimizer.learning_rate": 0.03,
        "ema_decay": None,
        "duration": "30 steps",
        "checkpoint_every": "30 steps",
        "evals": {"test": {"split": "test", "batch_size": 8}},
    }
    return toy({**settings, **dict(changes)})


NOUNS = "market mountain letter doctor window captain pocket teacher forest".split()
VERBS = "followed watched closed carried repaired".split()


def write_text(path, swap=None, sentences=10):
    """24 documents of sentences, the words of each sentence tied to each other."""
    lines = []
    for document in range(24):
        for number in range(sentences):
            i = 7 * document + number
            noun, other = NOUNS[i % 9], NOUNS[(i + 3) % 9]
            lines.append(f"The {noun} {VERBS[i % 5]} the {other} near the {noun} .")
        lines.append("")
    text = "\n".join(lines)
    for old, new in (swap or {}).items():
        text = text.replace(old, new)
    path.write_text(text)
    return str(path)


def tiny_bert(data, changes=()):
    settings = {
        "task.data": data,
        "task.vocab_size": 100,
        "model.vocab_size": 100,
        "model.depth": 1,
        "model.dropout": 0.0,
        "batch_size": 32,
        "optimizer.learning_rate": 0.01,
        "duration": "60 steps",
        "checkpoint_every": "60 steps",
        "evals.validation.every": "60 steps",
        **dict(changes),
    }
    return config_lib.load(
        f"{ROOT}/configs/bert/pretrain_stdlib.py:debug",
        [f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )
