"""RandAugment against TensorFlow's bytes (tests/golden/vit/preprocess), erasing, mixing."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attn_jax.data import augment
from attn_jax.tasks.classify import Classify

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden/vit/preprocess"
ORIGINAL = dict(np.load(GOLDEN / "randaug_ops.npz"))
ARGUMENTS = json.loads((GOLDEN / "randaug_args.json").read_text())
PIXELS = ORIGINAL["image"]  # 37 x 53
SMALL = np.ascontiguousarray(PIXELS[:19, :23])

FUNCTIONS = {
    "AutoContrast": augment.autocontrast,
    "Equalize": augment.equalize,
    "Invert": augment.invert,
    "Rotate": augment.rotate,
    "Posterize": augment.posterize,
    "Solarize": augment.solarize,
    "SolarizeAdd": augment.solarize_add,
    "Color": augment.color,
    "Contrast": augment.contrast,
    "Brightness": augment.brightness,
    "Sharpness": augment.sharpness,
    "ShearX": augment.shear_x,
    "ShearY": augment.shear_y,
    "TranslateX": augment.translate_x,
    "TranslateY": augment.translate_y,
}
WHOLE = ("Posterize", "Solarize", "SolarizeAdd")  # their arguments are integers


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def original_call(key: str, image: np.ndarray) -> np.ndarray:
    name = key.split("_")[0]
    arguments = ARGUMENTS[key]
    if name in WHOLE:
        arguments = [int(argument) for argument in arguments]
    return FUNCTIONS[name](image, *arguments)


def task(**changes) -> Classify:
    return Classify(data="digits", num_classes=5, image_size=16, **changes)


def batch(size: tuple[int, int] = (16, 16)) -> dict[str, jax.Array]:
    pixels = rng(1).integers(256, size=(8, *size, 3), dtype=np.uint8)
    return {"images": jnp.asarray(pixels), "labels": jnp.arange(8) % 5}


@functools.cache
def compiled(one: Classify, train: bool):
    return jax.jit(lambda rows, key: one.prepare(rows, key, train))


def prepared(
    one: Classify, seed: int, size: tuple[int, int] = (16, 16), train: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    done = compiled(one, train)(batch(size), jax.random.key(seed))
    return np.asarray(done["images"]), np.asarray(done["targets"])


# --- exact equalities and invariances -------------------------------------------------


def test_the_sixteen_operations_are_those_of_the_original():
    assert set(augment.OPERATIONS) == {*FUNCTIONS, "Cutout"}
    assert len(augment.OPERATIONS) == 16


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_no_operation_changes_what_it_is_given(name):
    image = PIXELS.copy()
    image.flags.writeable = False  # a write would raise
    done = augment.OPERATIONS[name](image, 1.0, rng())
    assert done.shape == image.shape and done.dtype == np.uint8


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_a_grey_image_is_a_channel_of_the_colour_image_of_equal_channels(name):
    grey = PIXELS[:, :, :1]
    done = augment.OPERATIONS[name](grey, 1.5, rng(3))
    in_colour = augment.OPERATIONS[name](grey.repeat(3, axis=2), 1.5, rng(3))
    np.testing.assert_array_equal(done.repeat(3, axis=2), in_colour)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_a_mirrored_view_is_augmented_like_its_copy(name):
    view = PIXELS[:, ::-1].transpose(1, 0, 2)
    done = augment.OPERATIONS[name](view, 1.5, rng(3))
    copied = augment.OPERATIONS[name](np.ascontiguousarray(view), 1.5, rng(3))
    np.testing.assert_array_equal(done, copied)


@pytest.mark.parametrize("name", augment.OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 3), (5, 2, 1)])
def test_images_smaller_than_a_window_pass_every_operation(name, shape):
    image = rng().integers(256, size=shape, dtype=np.uint8)
    assert augment.OPERATIONS[name](image, 1.0, rng()).shape == shape


def test_smoothing_follows_the_fused_sum_on_flat_and_on_textured_windows():
    """Each window by a sum that is rounded to float32 once a tap, written out."""
    image = np.full((23, 29, 3), 15, np.uint8)  # 15 becomes 14: its sum falls short
    image[:, 11:] = rng().integers(256, size=(23, 18, 3))
    total = np.zeros((21, 27, 3), np.float32)
    for y in range(3):
        for x in range(3):
            weight = np.float32(5 if x == y == 1 else 1) / np.float32(13)
            tap = image[y : y + 21, x : x + 27].astype(np.float64)
            total = (tap * np.float64(weight) + total).astype(np.float32)
    smooth = augment.sharpness(image, 0.0)[1:-1, 1:-1]
    np.testing.assert_array_equal(smooth, total.astype(np.uint8))
    assert smooth[0, 0, 0] == 14


def test_a_positive_rotation_is_counter_clockwise_and_positive_shifts_go_left_and_up():
    point = np.zeros((5, 5, 1), np.uint8)
    point[2, 4] = 255  # right of the centre
    assert augment.rotate(point, 90)[0, 2] == 255
    assert augment.translate_x(point, 3)[2, 1] == 255
    assert augment.translate_y(point, 2)[0, 4] == 255


def test_what_a_move_leaves_is_grey_128():
    moved = augment.translate_x(np.zeros((3, 7, 3), np.uint8), 2.0)
    assert np.all(moved[:, :5] == 0) and np.all(moved[:, 5:] == 128)
    assert np.all(augment.translate_y(SMALL, 100.0) == 128)


def test_the_grey_of_contrast_is_the_pixel_count_over_256_and_at_most_255():
    for side, grey in ((224, 196), (255, 254), (300, 255)):
        flat = augment.contrast(np.zeros((side, side, 1), np.uint8), 0.0)
        assert np.all(flat == grey)


def test_a_cutout_is_a_square_of_twice_its_pad_cut_at_the_border():
    black = np.zeros((11, 13, 3), np.uint8)
    middle = augment.cutout(black, 5, 6, 3)
    assert np.all(middle[2:8, 3:9] == 128) and middle.sum() == 6 * 6 * 3 * 128
    corner = augment.cutout(black, 0, 12, 3)
    assert np.all(corner[:3, 9:] == 128) and corner.sum() == 3 * 4 * 3 * 128
    np.testing.assert_array_equal(augment.cutout(black, 5, 6, 0), black)


@pytest.mark.parametrize(
    ("name", "magnitude", "same"),
    [
        ("Rotate", 15, lambda image, sign: augment.rotate(image, sign * 45.0)),
        ("ShearX", 10, lambda image, sign: augment.shear_x(image, sign * 0.3)),
        ("ShearY", 20, lambda image, sign: augment.shear_y(image, sign * 0.6)),
        ("TranslateX", 1, lambda image, sign: augment.translate_x(image, sign * 10.0)),
        ("TranslateY", 1, lambda image, sign: augment.translate_y(image, sign * 10.0)),
    ],
)
def test_moves_of_the_recipe_go_both_ways_with_its_constants(name, magnitude, same):
    signs = [
        [
            np.array_equal(
                augment.OPERATIONS[name](PIXELS, magnitude / 10, rng(seed)),
                same(PIXELS, sign),
            )
            for sign in (1, -1)
        ]
        for seed in range(40)
    ]
    assert np.all(np.sum(signs, axis=1) == 1)
    assert 8 < np.sum(signs, axis=0)[0] < 32  # 20 expected, standard deviation 3.2


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("Posterize", 10, augment.posterize(PIXELS, 4)),
        ("Posterize", 0, np.where(PIXELS < 128, 0, 128)),  # TensorFlow shifts by 7
        ("Posterize", 30, PIXELS),  # 12 bits are all 8
        ("Solarize", 5, augment.solarize(PIXELS, 128)),
        ("Solarize", 10, 255 - PIXELS),  # 256 wraps to 0 ...
        ("Solarize", 15, augment.solarize(PIXELS, 128)),  # ... and 384 to 128
        ("SolarizeAdd", 10, augment.solarize_add(PIXELS, 110)),
        ("Color", 10, augment.color(PIXELS, 1.9)),
        ("Contrast", 0, augment.contrast(PIXELS, 0.1)),
        ("Brightness", 20, augment.brightness(PIXELS, 3.7)),
        ("Sharpness", 5, PIXELS),  # a factor of 1
    ],
)
def test_magnitudes_become_the_arguments_of_the_recipe(name, magnitude, expected):
    done = augment.OPERATIONS[name](PIXELS, magnitude / 10, rng())
    np.testing.assert_array_equal(done, expected)


def test_the_cutout_of_the_recipe_is_at_most_80_pixels_wide_at_magnitude_10():
    black = np.zeros((200, 200, 1), np.uint8)
    random = rng()
    cut = [augment.OPERATIONS["Cutout"](black, 1.0, random) for _ in range(30)]
    widths = [np.any(image == 128, axis=0).sum() for image in cut]
    # 60 % of the centres lie 40 pixels or more from either side.
    assert max(widths) == 80 and 40 <= min(widths) < 80


def test_randaugment_repeats_with_the_seed_and_only_then():
    first, again, other = (
        [augment.randaugment(PIXELS, 2, 10, random) for _ in range(5)]
        for random in (rng(3), rng(3), rng(4))
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(np.array(first) != np.array(other))


def test_randaugment_draws_every_operation_equally_often(monkeypatch):
    seen = dict.fromkeys(augment.OPERATIONS, 0)

    def counting(name):
        def count(image, level, random):
            assert level == 1.0  # magnitude 10 is the full scale
            seen[name] += 1
            return image

        return count

    monkeypatch.setattr(augment, "OPERATIONS", {name: counting(name) for name in seen})
    random = rng()
    for _ in range(800):
        augment.randaugment(SMALL, 2, 10, random)
    # 1,600 always applied; 100 expected of each, standard deviation 9.7.
    assert sum(seen.values()) == 1600
    assert 60 < min(seen.values()) and max(seen.values()) < 140


def test_randaugment_of_no_layers_is_the_image_and_of_magnitude_0_is_not():
    np.testing.assert_array_equal(augment.randaugment(PIXELS, 0, 10, rng()), PIXELS)
    random = rng()
    changed = [
        np.any(augment.randaugment(PIXELS, 2, 0, random) != PIXELS) for _ in range(60)
    ]
    # An operation changes the image unless it moves it by 0 (Rotate, Shear, Translate),
    # adds 0, cuts out 0 or, here, stretches an image of full range: 8 of 16. Two
    # layers: 3/4 of 60 = 45, standard deviation 3.4.
    assert 30 < sum(changed) < 60


def test_erasing_repeats_with_the_seed_and_leaves_its_argument_alone():
    original = PIXELS.copy()
    erased = [augment.random_erase(PIXELS, 1.0, rng(seed)) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(erased[0], erased[1])
    assert np.any(erased[0] != erased[2])
    np.testing.assert_array_equal(PIXELS, original)


def test_erased_windows_keep_to_their_area_aspect_and_probability():
    black, random = np.zeros((101, 97, 3), np.uint8), rng()
    shares, aspects, kept = [], [], 0
    for _ in range(400):
        # Noise is black in all three channels once in 16 million pixels.
        erased = augment.random_erase(black, 0.75, random).any(axis=2)
        h, w = erased.any(axis=1).sum(), erased.any(axis=0).sum()
        assert erased.sum() == h * w  # one window
        kept += h == 0
        if h:
            shares.append(h * w / erased.size)
            aspects.append(h / w)
    assert 60 < kept < 140  # 100 expected, standard deviation 8.7
    # Rounding a side of 8 pixels or more changes an area or aspect by up to 7 %.
    assert 0.018 < min(shares) < 0.05 and 0.25 < max(shares) < 0.35
    assert 0.27 < min(aspects) < 0.6 and 1.7 < max(aspects) < 3.6


def test_an_erased_window_holds_noise_of_the_full_range():
    erased = augment.random_erase(
        np.full((64, 64, 3), 128, np.uint8), 1.0, rng(), (0.3, 0.3)
    )
    noise = erased[erased != 128]
    # About 3,700 uniform values: mean 127.5 +/- 1.2.
    assert noise.min() == 0 and noise.max() == 255 and abs(noise.mean() - 127.5) < 6


def test_a_window_that_fits_nowhere_erases_nothing():
    flat = np.zeros((1, 50, 3), np.uint8)
    np.testing.assert_array_equal(augment.random_erase(flat, 1.0, rng()), flat)


# --- the task -------------------------------------------------------------------------


def test_only_training_examples_are_augmented():
    record = {"image": SMALL, "label": 3}
    plain, both = task(), task(randaugment=(2, 10), erase=1.0)
    unseen = both.example(record, None)["images"]
    np.testing.assert_array_equal(unseen, plain.example(record, None)["images"])
    for one in (task(randaugment=(2, 10)), task(erase=1.0)):
        first, again, other = (
            one.example(record, rng(seed))["images"] for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other) and np.any(first != unseen)


def test_grey_training_examples_stay_grey():
    one = task(channels=1, randaugment=(2, 15), erase=0.5)
    record = {"image": SMALL, "label": 3}
    for seed in range(30):
        assert one.example(record, rng(seed))["images"].shape == (16, 16, 1)


@pytest.mark.parametrize("kind", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_evaluation_mixes_nothing(kind):
    done = prepared(task(**kind), 0, train=False)
    plain = prepared(task(), 0, train=False)
    for ours, expected in zip(done, plain, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixup_blends_each_row_with_the_one_before_by_one_weight(seed):
    images, targets = prepared(task(mixup=0.8), seed)
    plain, labels = prepared(task(), seed)
    share = targets[0, 0]  # rows 0 and 7 have the classes 0 and 2
    assert 0.5 <= share < 1  # the larger part; exactly 1 would show no mixing
    expected = share * plain + (1 - share) * np.roll(plain, 1, axis=0)
    # float32 in [-1, 1]: one rounding or another, not the 4e-3 of half a grey level.
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)
    expected = share * labels + (1 - share) * np.roll(labels, 1, axis=0)
    np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-6)


def test_mixup_shares_differ_by_key_and_follow_the_beta_distribution():
    shares = np.array([prepared(task(mixup=0.2), seed)[1][0, 0] for seed in range(60)])
    assert len(np.unique(shares)) > 40
    # Of Beta(.2, .2) folded at 1/2 the upper half lies above .984; 30 of 60 expected,
    # standard deviation 3.9. Of Beta(1, 1) it would be 2 of 60.
    assert 15 < np.sum(shares > 0.984) < 45 and shares.min() >= 0.5


@pytest.mark.parametrize(
    "kind", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_mixed_targets_sum_to_one(kind):
    for seed in range(4):
        targets = prepared(task(**kind, label_smoothing=0.1), seed)[1]
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=0, atol=1e-6)  # float32


def test_the_weight_of_cutmix_is_the_share_of_the_pixels_kept():
    one, shares = task(cutmix=1.0), []
    for seed in range(20):
        images, targets = prepared(one, seed, size=(11, 17))
        plain, _ = prepared(task(), seed, size=(11, 17))
        own = np.all(images == plain, axis=(0, 3))
        other = np.all(images == np.roll(plain, 1, axis=0), axis=(0, 3))
        assert np.all(own ^ other)  # every pixel is one of the two, unchanged
        assert other.sum() == other.any(1).sum() * other.any(0).sum()  # one window
        # A count over 187 pixels, in float32; one pixel more would be 5e-3.
        np.testing.assert_allclose(targets[0, 0], own.mean(), rtol=0, atol=1e-6)
        shares.append(own.mean())
    assert min(shares) < 0.6 and max(shares) > 0.9 and len(set(shares)) > 10


def test_with_both_a_coin_takes_mixup_or_cutmix_for_the_batch():
    one, windows = task(mixup=0.8, cutmix=1.0), 0
    plain, _ = prepared(task(), 0)
    for seed in range(30):
        images, _ = prepared(one, seed)
        own = np.all(images == plain, axis=(0, 3))
        other = np.all(images == np.roll(plain, 1, axis=0), axis=(0, 3))
        windows += bool(np.all(own | other))
        assert np.all(own | other) or not np.any(other)
    assert 7 < windows < 23  # 15 expected, standard deviation 2.7


@pytest.mark.parametrize("kind", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_mixing_does_not_depend_on_how_many_devices_hold_the_batch(kind):
    key, prepare = jax.random.key(3), compiled(task(**kind), True)
    devices = np.array(jax.devices())
    assert len(devices) == 8  # one row each, so every neighbour is elsewhere
    spread = NamedSharding(Mesh(devices, "data"), PartitionSpec("data"))
    apart = prepare(jax.device_put(batch(), spread), key)
    whole = prepare(jax.device_put(batch(), devices[0]), key)
    for name in ("images", "targets"):
        np.testing.assert_array_equal(apart[name], whole[name])


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"randaugment": (2, -1)}, r"randaugment=\(2, -1\) must be \(layers, magni"),
        (
            {"randaugment": (-2, 1)},
            r".* both 0 or more, such as \(2, 10\); None is off",
        ),
        ({"erase": 1.5}, r"erase=1.5 is a probability .* from 0 to 1; 0 is off"),
        ({"erase": float("nan")}, "erase=nan is a probability"),
        ({"mixup": -0.2}, r"mixup=-0.2 is the alpha of Beta.* 0 is off"),
        (
            {"cutmix": float("inf")},
            "cutmix=inf is the alpha .* non-negative and finite",
        ),
    ],
)
def test_a_task_refuses_what_it_cannot_honour_when_it_is_built(changes, says):
    with pytest.raises(ValueError, match="config.task." + says):
        task(**changes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: augment.randaugment(PIXELS, -1, 10, rng()), "layers=-1 and magnitude"),
        (lambda: augment.randaugment(PIXELS, 2, -1, rng()), "magnitude=-1 must be 0"),
        (lambda: augment.random_erase(PIXELS, 2.0, rng()), "probability=2.0 must lie"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- reference numbers ----------------------------------------------------------------


def test_every_golden_array_has_its_argument():
    assert set(ARGUMENTS) | {"image"} == set(ORIGINAL)


@pytest.mark.parametrize("key", sorted(ARGUMENTS))
def test_an_operation_gives_the_bytes_of_tensorflow(key):
    np.testing.assert_array_equal(original_call(key, PIXELS), ORIGINAL[key])
