"""Host image operations against big_vision's numbers (tests/golden/vit/preprocess)."""

import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from attn_jax.data import images

GOLDEN = pathlib.Path(__file__).parent / "golden/vit/preprocess/images.npz"
ORIGINAL = dict(np.load(GOLDEN))
PIXELS = ORIGINAL["image"]  # 37 x 53


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def resize_arguments(key: str) -> tuple[tuple[int, int], str, bool]:
    _, _, method, antialias, size = key.split("_")
    height, width = map(int, size.split("x"))
    return (height, width), method, antialias == "aa1"


def keys(prefix: str) -> list[str]:
    return sorted(key for key in ORIGINAL if key.startswith(prefix))


# --- exact equalities and invariances -------------------------------------------------


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_to_the_own_size_changes_nothing(method, antialias):
    resized = images.resize(PIXELS, (37, 53), method, antialias=antialias)
    np.testing.assert_array_equal(resized, PIXELS)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(11, 13), (61, 97)])
def test_a_flat_image_stays_flat_after_truncation(method, antialias, size):
    flat = np.full((37, 53, 3), 255, np.uint8)
    assert images.resize_u8(flat, size, method, antialias=antialias).min() == 255


def test_nearest_doubling_repeats_every_pixel():
    doubled = images.resize(PIXELS, (74, 106), "nearest")
    np.testing.assert_array_equal(doubled, PIXELS.repeat(2, 0).repeat(2, 1))


def test_bicubic_overshoot_is_clipped_not_wrapped():
    edge = np.zeros((4, 8, 1), np.uint8)
    edge[:, 4:] = 255
    raw = images.resize(edge, (4, 31), "bicubic")
    assert raw.min() < 0 and raw.max() > 255  # otherwise this test sees nothing
    clipped = images.resize_u8(edge, (4, 31), "bicubic").astype(int)
    assert np.all(np.diff(clipped[0, 10:21, 0]) >= -20)


def test_a_crop_repeats_with_the_seed_and_only_then():
    crops = [images.inception_crop(PIXELS, (17, 19), rng(seed)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert crops[0].shape == (17, 19, 3) and crops[0].dtype == np.uint8
    assert np.any(crops[0] != crops[2])


def test_crops_keep_to_their_area_aspect_and_image():
    area, ratio, random = (0.2, 0.7), (0.5, 1.5), rng()
    shares, aspects = [], []
    for _ in range(300):
        top, left, h, w = images.draw_inception_window(97, 101, random, area, ratio)
        assert 0 <= top <= 97 - h and 0 <= left <= 101 - w
        shares.append(h * w / (97 * 101))
        aspects.append(w / h)
    # The area is exact; the aspect is off by rounding the width, half of 1/31 pixels.
    assert 0.2 <= min(shares) < 0.25 and 0.6 < max(shares) <= 0.7
    assert 0.48 < min(aspects) < 0.6 and 1.4 < max(aspects) < 1.52


def test_a_crop_of_the_whole_area_is_the_resized_image():
    crop = images.inception_crop(
        PIXELS[:, :37], (16, 16), rng(), (1.0, 1.0), (1.0, 1.0)
    )
    np.testing.assert_array_equal(crop, images.resize_u8(PIXELS[:, :37], (16, 16)))


def test_an_impossible_crop_takes_the_whole_image():
    whole = images.draw_inception_window(10, 100, rng(), (0.9, 1.0), (0.9, 1.1))
    assert whole == (0, 0, 10, 100)


def test_a_shift_of_zero_pixels_changes_nothing():
    np.testing.assert_array_equal(images.shift_crop(PIXELS, 0, rng()), PIXELS)


def test_shifts_are_uniform_and_fill_with_zeros():
    bright = np.zeros((7, 9, 1), np.uint8)
    bright[3, 4] = 255
    random, seen = rng(), np.zeros((7, 9), int)
    for _ in range(500):
        seen += images.shift_crop(bright, 2, random)[:, :, 0] == 255
    # 25 places, 20 hits expected in each: a place that is never drawn shows as 0.
    assert seen[1:6, 2:7].min() > 5 and seen[1:6, 2:7].sum() == 500
    shifted = images.shift_crop(np.full((7, 9, 1), 255, np.uint8), 6, rng(2))
    assert set(np.unique(shifted)) == {0, 255}


def test_half_of_the_flips_mirror_left_to_right():
    random, mirrored = rng(), 0
    for _ in range(200):
        flipped = images.flip(PIXELS, random)
        same = np.array_equal(flipped, PIXELS)
        assert same or np.array_equal(flipped, PIXELS[:, ::-1])
        mirrored += not same
    assert 70 < mirrored < 130  # 100 expected, standard deviation 7


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: images.resize(PIXELS, (0, 5)), r"to \(0, 5\): every side must be"),
        (lambda: images.resize(PIXELS, (5, 5), "cubic"), "method='cubic' must be"),
        (
            lambda: images.central_crop(PIXELS, (38, 10)),
            "image is 37x53; a central crop of 38x10 must fit inside",
        ),
        (
            lambda: images.inception_crop(PIXELS, (8, 8), rng(), area=(0.0, 1.0)),
            r"area=\(0.0, 1.0\) must be \(low, high\) with 0 < low",
        ),
        (
            lambda: images.inception_crop(PIXELS, (8, 8), rng(), ratio=(2.0, 1.0)),
            r"ratio=\(2.0, 1.0\) must be",
        ),
        (lambda: images.value_range(PIXELS, in_max=0.0), "in_max=0.0 must differ"),
        (lambda: images.shift_crop(PIXELS, -1, rng()), "pixels=-1 must be 0 or more"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- reference numbers ----------------------------------------------------------------


@pytest.mark.parametrize("key", keys("resize_f32_"))
def test_resize_matches_tensorflow(key):
    size, method, antialias = resize_arguments(key)
    resized = images.resize(PIXELS, size, method, antialias=antialias)
    # Of 255: TensorFlow takes positions in float32. 7e-4 seen; a kernel that ignores
    # `antialias`, or another bicubic coefficient, is off by more than 1.
    np.testing.assert_allclose(resized, ORIGINAL[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize("key", keys("resize_u8_"))
def test_resize_u8_truncates_like_big_vision(key):
    size, method, antialias = resize_arguments(key)
    resized = images.resize_u8(PIXELS, size, method, antialias=antialias)
    difference = resized.astype(int) - ORIGINAL[key]
    # Truncation turns a last-bit difference into 1 grey level, in up to 29 of 9,216
    # values; rounding instead of truncating would change half of them.
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.005


@pytest.mark.parametrize("smaller", [16, 32])
def test_resize_small_matches_big_vision(smaller):
    by_area = images.resize_small(PIXELS, smaller)
    np.testing.assert_array_equal(by_area, ORIGINAL[f"resize_small_area_{smaller}"])
    bilinear = images.resize_small(PIXELS, smaller, "bilinear").astype(int)
    expected = ORIGINAL[f"resize_small_bilinear_aa1_{smaller}"]
    assert np.abs(bilinear - expected).max() <= 1  # truncation, as above


def test_the_longer_side_is_rounded_to_the_nearest_pixel():
    assert images.resize_small(PIXELS, 10).shape == (10, 14, 3)  # 14.3
    assert images.resize_small(PIXELS, 16).shape == (16, 23, 3)  # 22.9


def test_central_crop_matches_big_vision():
    for key, size in {"24x24": (24, 24), "16x30": (16, 30), "max": None}.items():
        crop = images.central_crop(PIXELS, size)
        np.testing.assert_array_equal(crop, ORIGINAL[f"central_crop_{key}"])


def test_value_range_matches_big_vision():
    np.testing.assert_array_equal(
        images.value_range(PIXELS), ORIGINAL["value_range_m1_1"]
    )
    unit = images.value_range(PIXELS, 0.0, 1.0)
    np.testing.assert_array_equal(unit, ORIGINAL["value_range_0_1"])
    bounds = dict(in_min=(0.0, 10.0, 20.0), in_max=(255.0, 200.0, 180.0))
    by_channel = images.value_range(PIXELS, **bounds, clip=True)
    expected = ORIGINAL["value_range_imagenet_meanstd_style"]
    np.testing.assert_array_equal(by_channel, expected)
    assert np.abs(images.value_range(PIXELS, **bounds)).max() > 1  # without clip


def test_pixels_are_normalized_as_by_the_original_vit():
    expected = ORIGINAL["vt_minus127p5_over127p5"]
    # One float32 rounding apart, since XLA multiplies by 1/127.5; a wrong centre (128)
    # would be off by 4e-3.
    found = jax.jit(images.normalize)(jnp.asarray(PIXELS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-8)
    np.testing.assert_allclose(images.value_range(PIXELS), expected, rtol=0, atol=1e-6)


def test_a_mean_and_a_deviation_a_channel_are_those_of_torchvision():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = jax.jit(lambda x: images.normalize(x, mean, std))(jnp.asarray(PIXELS[None]))
    expected = (PIXELS / 255 - np.array(mean)) / np.array(std)  # ToTensor, Normalize
    # float32 of values up to 2.7: 5e-7 seen; channels in another order are off by .1.
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-6)
    grey = images.normalize(jnp.asarray(PIXELS[..., :1]), 0.25, 2.0)
    np.testing.assert_allclose(grey, (PIXELS[..., :1] / 255 - 0.25) / 2, atol=1e-7)


def test_equal_channels_change_no_bit_of_one_number():
    ours = images.normalize(jnp.asarray(PIXELS), (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(ours, images.normalize(jnp.asarray(PIXELS)))
