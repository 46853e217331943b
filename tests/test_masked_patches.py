"""Masked patch prediction: targets, what is corrupted, what counts, what is carried over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train
from attn_jax import config as config_lib
from attn_jax import paths, sharding, step
from attn_jax.models.vit import ViT
from attn_jax.tasks.classify import Classify
from attn_jax.tasks.masked_patches import MaskedPatches

KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def task_of(**changes) -> MaskedPatches:
    """12 patches in 4 rows of 3, whose height and width differ, too."""
    fields = dict(data="digits", image_size=(8, 12), patch_size=(2, 4), channels=3)
    return MaskedPatches(**fields | changes)


def batch_of(task: MaskedPatches, rows: int = 7, seed: int = 0) -> dict:
    shape = (rows, *task.size, task.channels)
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    return {
        "images": pixels,
        "index": np.arange(10, 10 + rows, dtype=np.int32),
        "valid": np.ones(rows, bool),
    }


def prepared(task: MaskedPatches, batch: dict, key=KEY, train: bool = False) -> dict:
    return task.prepare(on_device(batch), key, train)


def on_device(batch: dict) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in batch.items()}


def many(task: MaskedPatches, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(corrupted, masked, source) of that many images, each [images, N]."""
    drawn = jax.jit(jax.vmap(task.draw_corruption))(jax.random.split(KEY, images))
    return tuple(np.asarray(array) for array in drawn)


# --- targets ----------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "bits"), [(1, 3), (3, 3), (3, 1), (1, 8)])
def test_targets_are_the_mean_colours_of_a_loop_over_the_original_pixels(
    channels, bits
):
    task = task_of(channels=channels, bits=bits)
    batch = batch_of(task)
    # A mean of half the range: to the upper bins, exactly.
    batch["images"][0, :2, :4] = [[[128]], [[128]]]
    expected = np.zeros((7, 12), int)
    for image in range(7):
        patch = 0
        for top in range(0, 8, 2):
            for left in range(0, 12, 4):
                for channel in range(channels):
                    tile = batch["images"][image, top : top + 2, left : left + 4]
                    mean = tile[..., channel].astype(float).mean()
                    bin = int(mean / 256 * 2**bits)
                    expected[image, patch] = expected[image, patch] * 2**bits + bin
                patch += 1
    targets = prepared(task, batch)["patch_targets"]
    np.testing.assert_array_equal(targets, expected)
    assert task.classes == 2 ** (bits * channels)
    assert targets.max() < task.classes


def test_a_channel_falls_into_eight_bins_of_32_levels():
    task = task_of(channels=1, image_size=(2, 28))
    pixels = np.repeat([0, 31, 32, 127, 128, 223, 255], 4).astype(np.uint8)
    batch = batch_of(task, 1) | {"images": np.tile(pixels, (2, 1))[None, :, :, None]}
    targets = prepared(task, batch)["patch_targets"]
    assert targets.tolist() == [[0, 0, 1, 3, 4, 6, 7]]


# --- what is corrupted ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "number"), [(0.1, 1), (0.5, 6), (0.8, 10), (1.0, 12)]
)
def test_as_many_patches_as_the_share_says_are_corrupted_in_every_image(share, number):
    corrupted, _, _ = many(task_of(corrupted=share), 50)
    assert set(corrupted.sum(axis=1)) == {number}


def test_every_patch_is_corrupted_equally_often():
    corrupted, _, _ = many(task_of(corrupted=0.25), 4000)
    # 1,000 expected, standard deviation 27; 5 of them for the extreme of 12 patches.
    assert np.abs(corrupted.sum(axis=0) - 1000).max() < 137


def test_corrupted_patches_are_masked_replaced_and_kept_80_10_10():
    corrupted, masked, source = many(task_of(), 2000)
    replaced = source != np.arange(12)
    assert not (masked & replaced).any()
    kept = corrupted & ~masked & ~replaced
    shares = [part.sum() / corrupted.sum() for part in (masked, replaced, kept)]
    # Of 12,000: a standard deviation of 0.0037 and, for the small ones, of 0.0027.
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], rtol=0, atol=0.015)


def test_other_patches_are_left_alone():
    corrupted, masked, source = many(task_of(), 200)
    assert not (masked & ~corrupted).any()
    assert not ((source != np.arange(12)) & ~corrupted).any()


def test_a_patch_is_replaced_by_every_other_one_alike_and_never_by_itself():
    task = task_of(image_size=(4, 8), corrupted=1.0, masked=0.0, replaced=1.0)
    _, _, source = many(task, 3000)
    assert (source != np.arange(4)).all()
    for patch in range(4):
        counts = np.delete(np.bincount(source[:, patch], minlength=4), patch)
        # 1,000 expected, standard deviation 26.
        assert np.abs(counts - 1000).max() < 130


def test_an_evaluation_corrupts_an_image_alike_whatever_its_batch():
    task = task_of()
    batch = batch_of(task)
    together = prepared(task, batch)
    for row in range(7):
        alone = prepared(task, {k: v[row : row + 1] for k, v in batch.items()})
        assert alone.keys() == together.keys()
        for name, array in alone.items():
            np.testing.assert_array_equal(array[0], together[name][row], err_msg=name)


def test_evaluations_repeat_and_training_draws_anew_in_each_step_and_row():
    task = task_of()
    batch = batch_of(task)
    batch["images"][:] = batch["images"][:1]
    names = ("patch_corrupted", "patch_mask", "patch_source")

    def drawn(step: int, train: bool) -> np.ndarray:
        # An image that comes twice in a batch of training is corrupted in two ways.
        twice = {"index": batch["index"] * (not train)}
        key = jax.random.fold_in(KEY, step)
        found = prepared(task, batch | twice, key, train)
        return np.stack([found[name] for name in names], axis=1).astype(int)

    for train_ in (False, True):
        np.testing.assert_array_equal(drawn(0, train_), drawn(0, train_))
        rows = {row.tobytes() for row in drawn(0, train_)}
        assert len(rows) == 7
    assert (drawn(0, True) != drawn(1, True)).any(axis=(1, 2)).all()


@pytest.mark.parametrize("crop", ["none", "inception", "shift"])
@pytest.mark.parametrize("resize", [None, 20])
@pytest.mark.parametrize("train_", [False, True])
def test_an_image_is_framed_as_for_classification(crop, resize, train_):
    fields = dict(data="digits", image_size=(8, 12), crop=crop, crop_area=(0.3, 0.9))
    fields |= dict(shift_pixels=2, flip=True, resize=resize)
    classify = Classify(num_classes=10, **fields)
    masked = MaskedPatches(patch_size=4, **fields)
    pixels = np.random.default_rng(0).integers(256, size=(17, 19, 3), dtype=np.uint8)
    record = {"image": pixels, "label": 3}
    for seed in range(4):
        ours, theirs = (
            task.example(record, np.random.default_rng(seed) if train_ else None)
            for task in (masked, classify)
        )
        assert ours.keys() == {"images"}
        np.testing.assert_array_equal(ours["images"], theirs["images"])


def test_images_are_scaled_from_minus_1_to_1():
    task = task_of()
    batch = batch_of(task, 2)
    batch["images"][0], batch["images"][1] = 0, 255
    images = prepared(task, batch)["images"]
    assert (images[0] == -1).all() and (images[1] == 1).all()


# --- the loss ---------------------------------------------------------------------------


def random_logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 12, 512)).astype(np.float32)


def loss_of(task: MaskedPatches, logits, batch: dict) -> dict:
    """{name: (sum, count)} as Python's numbers."""
    terms = task.loss({"patch_logits": jnp.asarray(logits)}, on_device(batch))
    return jax.tree.map(float, terms)


def test_the_loss_is_the_cross_entropy_of_corrupted_patches():
    task = task_of()
    batch = prepared(task, batch_of(task))
    logits = random_logits()
    losses, hits = [], []
    for row, patch in np.argwhere(batch["patch_corrupted"]):
        exponents = np.exp(logits[row, patch].astype(float))
        target = batch["patch_targets"][row, patch]
        losses.append(-np.log(exponents[target] / exponents.sum()))
        hits.append(exponents.argmax() == target)
    terms = loss_of(task, logits, batch)
    total, count = terms["masked_patch_loss"]
    right, of = terms["masked_patch_accuracy"]
    assert count == of == len(losses) == 7 * 6
    # Float32 sums of 512 exponentials and of 42 losses near 7.
    assert total == pytest.approx(sum(losses), rel=1e-6)
    assert right == sum(hits)


def test_right_answers_have_no_loss_and_full_accuracy():
    task = task_of()
    batch = prepared(task, batch_of(task))
    logits = 100.0 * jax.nn.one_hot(batch["patch_targets"], 512)
    terms = loss_of(task, logits, batch)
    assert terms["masked_patch_loss"] == (0, 42)
    assert terms["masked_patch_accuracy"] == (42, 42)


def test_padded_rows_and_whole_patches_do_not_count():
    task = task_of()
    batch = jax.device_get(prepared(task, batch_of(task)))
    logits = random_logits()
    padded = batch | {"valid": np.arange(7) < 4}
    terms = loss_of(task, logits, padded)
    alone = loss_of(task, logits[:4], {k: array[:4] for k, array in batch.items()})
    logits[4:] *= 1e3
    logits[~batch["patch_corrupted"]] = 7
    again = loss_of(task, logits, padded)
    for name, (total, count) in terms.items():
        assert count == alone[name][1] == again[name][1] == 4 * 6
        # Zeros are added, at most in another order.
        assert total == pytest.approx(alone[name][0], rel=1e-6)
        assert total == again[name][0]


# --- with the model ---------------------------------------------------------------------


def model_of(task: MaskedPatches, **changes) -> ViT:
    fields = dict(num_classes=0, patch_size=task.patch_size, width=16, depth=2)
    fields |= dict(mlp_width=32, num_heads=2, mask_token=True)
    return ViT(**fields | {"patch_outputs": task.classes} | changes)


def initialised(task: MaskedPatches, batch: dict, **changes):
    """(model, parameters), none of them zero."""
    model = model_of(task, **changes)
    init = jax.jit(functools.partial(step.init_params, model, task))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32),
        jax.device_get(init(on_device(batch), KEY)),
    )


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_predictions_do_not_depend_on_the_pixels_of_masked_patches(pool):
    task = task_of(masked=1.0, replaced=0.0)
    batch = batch_of(task)
    model, params = initialised(task, batch, pool=pool)

    @jax.jit
    def forward(batch):
        inputs = task.inputs(task.prepare(batch, KEY, False))
        return model.apply({"params": params}, **inputs, train=False)["patch_logits"]

    def logits(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(forward(on_device(batch | {"images": pixels})))

    mask = prepared(task, batch)["patch_mask"].reshape(7, 4, 3)
    hidden = mask.repeat(2, axis=1).repeat(4, axis=2)[..., None]
    before = logits(batch["images"])
    np.testing.assert_array_equal(
        logits(np.where(hidden, 255 - batch["images"], batch["images"])), before
    )
    seen = logits(np.where(hidden, batch["images"], 255 - batch["images"]))
    assert (np.abs(seen - before).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("masked", [0.8, 0.0])
def test_a_gradient_reaches_the_mask_token_if_anything_is_masked(masked):
    task = task_of(masked=masked)
    batch = batch_of(task)
    model, params = initialised(task, batch)
    ready = prepared(task, batch, train=True)

    def loss(params):
        outputs = model.apply({"params": params}, **task.inputs(ready), train=False)
        total, count = task.loss(outputs, ready)["masked_patch_loss"]
        return total / count

    gradients = paths.named_leaves(jax.jit(jax.grad(loss))(params))
    for name in ("patch_head/kernel", "patch_head/bias", "embedding/kernel"):
        assert optax.tree.norm(gradients[name]) > 1e-4, name
    assert (optax.tree.norm(gradients["mask_token"]) > 1e-4) == (masked > 0)


# --- the recipes ------------------------------------------------------------------------


def run(recipe: str, workdir, *settings: str):
    settings += ("evals={}", "keep_best=null")
    config = config_lib.load(f"configs/vit/{recipe}.py:debug", settings)
    return train.train(config, str(workdir))


def test_fine_tuning_starts_from_the_encoder_of_a_masked_run(tmp_path, monkeypatch):
    one = sharding.make_mesh({}, jax.devices()[:1])  # less to compile
    monkeypatch.setattr(sharding, "make_mesh", lambda *arguments: one)
    theirs = paths.named_leaves(run("masked_patches", tmp_path / "masked").params)
    start = f'[["{tmp_path / "masked"}", "", "patch_head/.*|mask_token"]]'
    # The learning rate of the first step is 0, so the run ends where it starts.
    state = run(
        "finetune", tmp_path / "tuned", f"init_from={start}", 'duration="1 steps"'
    )
    ours = paths.named_leaves(state.params)
    shared = ours.keys() & theirs.keys()
    assert theirs.keys() - shared == {
        "mask_token",
        "patch_head/kernel",
        "patch_head/bias",
    }
    assert ours.keys() - shared == {"head/kernel", "head/bias"}
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_the_recipes_for_cifar10_have_one_encoder():
    encoders = []
    for recipe in ("masked_patches", "finetune"):
        config = config_lib.load(f"configs/vit/{recipe}.py:cifar10")
        model = config_lib.to_plain(config.model)
        for name in ("num_classes", "mask_token", "patch_outputs"):
            del model[name]
        encoders.append(model)
    assert encoders[0] == encoders[1]


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(patch_size=5), r"8x12; patch_size=5 must divide .* config\.task\.image"),
        (dict(patch_size=(3, 4)), r"patch_size=\(3, 4\) must divide"),
        (dict(patch_size=(2, 5)), r"patch_size=\(2, 5\) must divide"),
        (dict(patch_size=0), r"patch_size=0 must divide"),
        (dict(corrupted=1.5), r"config\.task\.corrupted=1\.5 .* 0 to 1"),
        (dict(masked=-0.1), r"config\.task\.masked=-0\.1 .* 0 to 1"),
        (dict(replaced=2.0), r"config\.task\.replaced=2\.0 .* 0 to 1"),
        (dict(replaced=0.3), r"masked=0\.8 and replaced=0\.3 .* at most 1; lower"),
        (dict(bits=9), r"bits=9.* config\.task\.bits to 1 to 8"),
        (dict(bits=0), r"bits=0"),
        (dict(corrupted=0.0), r"corrupted=0\.0 of 12 .* at least 1 .* Raise"),
        (dict(patch_size=(8, 12), corrupted=1.0), r"of 1 patches is 1; .* another"),
    ],
)
def test_a_task_that_cannot_be_says_why(changes, words):
    with pytest.raises(ValueError, match=words):
        task_of(**changes)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, r"no patch_logits; .*config\.model\.patch_outputs to 512"),
        (
            {"patch_logits": jnp.zeros((7, 12, 8))},
            r"8 classes; .*patch_outputs to 512",
        ),
    ],
)
def test_a_head_that_does_not_fit_says_what_would(outputs, words):
    task = task_of()
    with pytest.raises(ValueError, match=words):
        task.loss(outputs, prepared(task, batch_of(task)))
