"""Generated images of sprites."""

import numpy as np
import pytest

from attn_jax.data.scene_sources import open_generated
from attn_jax.data.sprites import ELLIPSE, VARIANTS, MultiSprites


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("binarized", {2, 3}),
        ("colored_on_grayscale", {2, 3, 4, 5}),
        ("colored_on_colored", {1, 2, 3, 4}),
    ],
)
def test_sprites_are_as_many_as_in_the_original_and_each_has_one_color(variant, counts):
    source = MultiSprites("train", 60, variant=variant)
    seen = set()
    for i in range(len(source)):
        record = source[i]
        image, mask = record["image"], record["mask"]
        assert image.shape == (64, 64, 3) and image.dtype == mask.dtype == np.uint8
        seen.add(int(mask.max()))  # the last sprite is in front of all others
        for number in np.unique(mask):
            assert len(np.unique(image[mask == number], axis=0)) == 1
        gray = (image == image[..., :1]).all(axis=-1)
        if variant == "binarized":
            np.testing.assert_array_equal(
                image, 255 * (mask > 0)[..., None].repeat(3, 2)
            )
        elif variant == "colored_on_grayscale":
            assert gray[mask == 0].all()
    assert seen == counts


def test_later_sprites_cover_earlier_ones():
    source = MultiSprites("train", 100, fewest=5)
    sizes = [
        np.bincount(source[i]["mask"].ravel(), minlength=6)[1:] for i in range(100)
    ]
    first, *_, last = np.array(sizes).T
    # The smallest sprite is an ellipse of half the scale, of 88 pixels; those whose center it
    # covers may be some fewer.
    smallest = np.pi * ELLIPSE[0] * ELLIPSE[1] / 4 - 8
    assert last.min() >= smallest
    assert first.min() < smallest and first.mean() < last.mean()


def test_sprites_lie_in_the_frame_whole():
    source = MultiSprites("test", 200, fewest=1, most=1)
    for i in range(len(source)):
        mask = source[i]["mask"]
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not edge.any()


def test_another_canvas_shows_the_same_scene():
    # Centers of the coarse pixels are centers of every third fine one.
    fine = MultiSprites("train", 9, canvas=48)
    coarse = MultiSprites("train", 9, canvas=16)
    for i in range(9):
        for key in ("image", "mask"):
            np.testing.assert_array_equal(coarse[i][key], fine[i][key][1::3, 1::3])


def test_all_variants_scales_and_shapes_come():
    source = MultiSprites("train", 300, fewest=1, most=1)
    areas = [int((source[i]["mask"] > 0).sum()) for i in range(300)]
    # pi * 14 * 8 at scale 1, 11**2 at scale 1/2; the ellipse and the heart are alike in size.
    assert max(areas) > 400 and min(areas) < 140
    prints = {MultiSprites("train", 9, variant=name).fingerprint() for name in VARIANTS}
    prints |= {MultiSprites("test", 9).fingerprint()}
    prints |= {
        MultiSprites("train", 9, **{k: 3}).fingerprint() for k in ("seed", "most")
    }
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "grey"}, "variant='grey' must be one of 'binarized'"),
        ({"fewest": 4, "most": 3}, "fewest=4, most=3 objects.*from 1 to 255"),
        ({"fewest": 0}, "fewest=0"),
        ({"canvas": 7}, "canvas=7 pixels"),
        ({"split": "dev"}, "split='dev' must be one of"),
        ({"size": 0}, "size=0 images"),
    ],
)
def test_sprites_that_cannot_be_drawn_say_why(options, words):
    with pytest.raises(ValueError, match=words):
        MultiSprites(**{"split": "train", "size": 3, **options})


def test_generated_data_is_opened_by_name():
    def describe(data, **options):
        source = open_generated(data, "test", 9, **{"canvas": 35, "most": 3} | options)
        return source.describe()

    assert describe("tetrominoes") == "tetrominoes 1: ('test', 9, 35, 5, 3, 0)"
    found = describe("multi_dsprites/binarized", canvas=64)
    assert found == "sprites 1: ('test', 9, 'binarized', 64, 2, 3, 0)"
    assert describe("clevr_lite") == "clevr_lite 1: ('test', 9, 35, 3, 3, False, 0)"
    found = describe("clevr_lite/whole", fewest=2, seed=5)
    assert found == "clevr_lite 1: ('test', 9, 35, 2, 3, True, 5)"
    with pytest.raises(ValueError, match="'multi_dsprites' is unknown.*clevr_lite"):
        describe("multi_dsprites")
    with pytest.raises(ValueError, match="fewest=2 differs from most=3.*to None"):
        describe("tetrominoes", fewest=2)
