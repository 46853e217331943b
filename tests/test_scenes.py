"""Generated scenes of tetrominoes, and the task of reconstructing them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slot_models import KEY, tiny

from attn_jax import step
from attn_jax.data.scenes import COLORS, SHAPES, TILE, Tetrominoes, make_mask
from attn_jax.tasks.reconstruct import Reconstruct

pytestmark = pytest.mark.usefixtures("quick_compilation")


def canonical(mask, tile):
    """The tiles that a piece covers, from its upper left corner."""
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return tuple(map(tuple, box[::tile, ::tile])), box.shape


def test_the_shapes_are_the_19_tetrominoes():
    shapes = {canonical(make_mask(shape, 1), 1) for shape in SHAPES}
    assert len(shapes) == len(SHAPES) == 19
    assert all(make_mask(shape, 1).sum() == 4 for shape in SHAPES)


@pytest.mark.parametrize(("canvas", "tile"), [(35, 5), (14, 2)])
def test_a_scene_is_three_whole_tetrominoes_on_black(canvas, tile):
    known = {canonical(make_mask(shape, tile), tile) for shape in SHAPES}
    source = Tetrominoes("train", 40, canvas=canvas, tile=tile)
    seen = set()
    for i in range(len(source)):
        record = source[i]
        image, mask = record["image"], record["mask"]
        assert image.shape == (canvas, canvas, 3)
        assert image.dtype == mask.dtype == np.uint8
        # None covers a pixel of another, or one of them would have fewer.
        assert np.bincount(mask.ravel())[1:].tolist() == [4 * tile**2] * 3
        np.testing.assert_array_equal(image.any(axis=-1), mask > 0)
        for piece in (1, 2, 3):
            shape = canonical(mask == piece, tile)
            assert shape in known
            seen.add(shape)
            values = image[mask == piece]
            colour = (values > 0).all(axis=0)
            assert tuple(colour.astype(int)) in COLORS
            assert not values[:, ~colour].any()
    assert len(seen) == 19


def test_tiles_have_the_brightness_of_the_original():
    image = Tetrominoes("test", 5)[3]["image"]
    lit = image.max(axis=-1)
    row, column = (int(i.min()) for i in np.nonzero(lit))
    row = int(np.nonzero(lit[:, column])[0].min())
    np.testing.assert_array_equal(lit[row : row + 5, column : column + 5], TILE)


def test_a_scene_depends_on_seed_split_and_index_alone():
    one = Tetrominoes("train", 30)
    again = Tetrominoes("train", 40)
    np.testing.assert_array_equal(again[7]["image"], one[7]["image"])
    others = [
        Tetrominoes("train", 30, seed=1)[7],
        Tetrominoes("validation", 30)[7],
        Tetrominoes("test", 30)[7],
        one[8],
    ]
    for other in others:
        assert (other["image"] != one[7]["image"]).any()
    prints = {
        Tetrominoes(split, 30, **options).fingerprint()
        for split in ("train", "test")
        for options in ({}, {"seed": 1}, {"canvas": 40}, {"tile": 4}, {"pieces": 2})
    }
    assert len(prints) == 10
    assert one.fingerprint() != again.fingerprint()


def test_no_two_splits_share_an_image():
    images = [
        Tetrominoes(split, 100)[i]["image"].tobytes()
        for split in ("train", "validation", "test")
        for i in range(100)
    ]
    assert len(set(images)) == len(images)


def batch_of(task, rows, split="train"):
    source = task.source(split)
    examples = [task.example(source[i], None) for i in range(rows)]
    batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    batch |= {"index": np.arange(rows, dtype=np.int32), "valid": np.ones(rows, bool)}
    return jax.tree.map(jnp.asarray, batch)


SMALL_TASK = Reconstruct("tetrominoes", image_size=12, tile_pixels=2, num_objects=2)


def test_a_perfect_reconstruction_has_no_error_and_index_1():
    batch = SMALL_TASK.prepare(batch_of(SMALL_TASK, 4), KEY, False)
    masks = jnp.stack([batch["object_ids"] == i for i in (2, 0, 1)], axis=1)
    outputs = {"reconstruction": batch["images"], "masks": masks.astype(jnp.float32)}
    terms = jax.jit(SMALL_TASK.loss)(outputs, batch)
    found = {name: (float(sum_), float(count)) for name, (sum_, count) in terms.items()}
    perfect = dict.fromkeys(("ari", "fg_ari", "mbo", "covering"), (4.0, 4.0))
    assert found == {"squared_error": (0.0, 4.0)} | perfect


def test_padded_rows_and_images_without_objects_do_not_count():
    batch = SMALL_TASK.prepare(batch_of(SMALL_TASK, 4), KEY, False)
    batch |= {
        "object_ids": batch["object_ids"].at[1].set(0),
        "valid": jnp.array([True, True, False, True]),
    }
    outputs = {
        "reconstruction": batch["images"] + jnp.array([1, 2, 9, 1]).reshape(4, 1, 1, 1),
        "masks": jax.random.uniform(KEY, (4, 3, 12, 12)),
    }
    terms = jax.jit(SMALL_TASK.loss)(outputs, batch)
    assert float(terms["squared_error"][0]) == pytest.approx(6, rel=1e-6)  # float32
    counts = {name: float(count) for name, (_, count) in terms.items()}
    assert counts == {
        "squared_error": 3,
        "ari": 3,
        "fg_ari": 2,
        "mbo": 2,
        "covering": 2,
    }


def test_training_draws_new_slots_each_step_and_evaluation_the_same_per_example():
    batch = batch_of(SMALL_TASK, 3)

    def numbers(key, train, rows=slice(None)):
        part = {name: value[rows] for name, value in batch.items()}
        prepared = SMALL_TASK.prepare(part, key, train)
        return np.asarray(jax.random.key_data(prepared["sample_keys"]))

    other = jax.random.key(5)
    assert (numbers(KEY, True) != numbers(other, True)).any(axis=1).all()
    np.testing.assert_array_equal(
        numbers(KEY, False)[1:], numbers(KEY, False, slice(1, None))
    )
    assert len(np.unique(numbers(KEY, False), axis=0)) == 3


def test_micro_batches_take_the_step_of_one_batch():
    model = tiny(decoder_initial_size=(6, 6))
    batch = batch_of(SMALL_TASK, 8)
    optimizer = optax.sgd(0.1)
    init = jax.jit(functools.partial(step.init_params, model, SMALL_TASK))
    state = step.init_state(init(batch, KEY), optimizer, KEY, None)

    def after(micro_batches):
        update = functools.partial(
            step.train_step,
            model=model,
            task=SMALL_TASK,
            optimizer=optimizer,
            micro_batches=micro_batches,
        )
        return jax.jit(update)(state, batch)[0].params

    one, parts = after(1), after(4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    for ours, theirs in zip(*map(jax.tree.leaves, (parts, one)), strict=True):
        # Four partial sums instead of one: roundings of gradients near 1, times 0.1.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "testing"}, "split='testing' must be one of"),
        ({"size": 0}, "size=0 images"),
        ({"canvas": 19}, "canvas=19, tile=5"),
        ({"tile": 1}, "tile=1"),
        ({"pieces": 6}, "cover 49%.*at most 35%.*fewer pieces"),
    ],
)
def test_scenes_that_cannot_be_drawn_say_why(options, words):
    with pytest.raises(ValueError, match=words):
        Tetrominoes(**{"split": "train", "size": 3, **options})


def test_unknown_data_or_splits_say_what_is_known():
    with pytest.raises(
        ValueError, match="config.task.data='clever' is unknown.*'tetrominoes'"
    ):
        Reconstruct("clever").source("train")
    with pytest.raises(ValueError, match="split='dev' must be one of train"):
        Reconstruct("tetrominoes").source("dev")
    with pytest.raises(IndexError):
        Tetrominoes("train", 3)[3]
