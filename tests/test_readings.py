"""Measurements of attention and filters: closed forms and golden numbers."""

import pathlib

import numpy as np
import pytest

from attn_jax.analysis import readings

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "vit"


def attention(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights whose rows sum to 1."""
    weights = np.random.default_rng(seed).exponential(size=shape) ** 2
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("grid", [(1, 7), (5, 1), (2, 2), (3, 5), (4, 4)])
def test_uniform_attention_is_as_far_as_two_random_patches_are_apart(grid):
    """Of all ordered pairs, (rows - |y|) (columns - |x|) are y down and x across apart."""
    down, across = 4.0, 3.0
    total = 0.0
    for y in range(1 - grid[0], grid[0]):
        for x in range(1 - grid[1], grid[1]):
            pairs = (grid[0] - abs(y)) * (grid[1] - abs(x))
            total += pairs * ((down * y) ** 2 + (across * x) ** 2) ** 0.5
    patches = grid[0] * grid[1]
    weights = np.full((1, 1, patches, patches), 1 / patches)
    found = readings.mean_attention_distance(weights, grid, (down, across))
    np.testing.assert_allclose(found, total / patches**2, rtol=1e-12)
    if grid[0] == 1:  # then it is (n^2 - 1) / 3n patches
        n = grid[1]
        np.testing.assert_allclose(found, across * (n * n - 1) / (3 * n), rtol=1e-12)


def test_what_goes_to_the_prefix_is_no_distance_unless_renormalised():
    patches = attention(2, 3, 6, 6)
    weights = np.full((2, 3, 8, 8), 0.1)
    weights[:, :, 2:, 2:] = 0.8 * patches  # and 0.1 to each of two tokens before
    alone = readings.mean_attention_distance(patches, (2, 3), 4)
    options = {"grid": (2, 3), "patch_size": 4, "prefix": 2}
    found = readings.mean_attention_distance(weights, **options)
    np.testing.assert_allclose(found, 0.8 * alone, rtol=1e-12)
    found = readings.mean_attention_distance(weights, **options, renormalize=True)
    np.testing.assert_allclose(found, alone, rtol=1e-12)


def test_a_head_that_sees_only_the_class_token_has_distance_0_not_nan():
    weights = np.zeros((1, 1, 5, 5))
    weights[..., 0] = 1
    for renormalize in (False, True):
        found = readings.mean_attention_distance(
            weights, (2, 2), 4, prefix=1, renormalize=renormalize
        )
        assert found == 0


def test_distance_is_in_pixels_and_apart_for_each_image_and_head():
    weights = attention(3, 2, 6, 6)
    found = readings.mean_attention_distance(weights, (2, 3), 1)
    twice = readings.mean_attention_distance(weights, (2, 3), 2)
    np.testing.assert_allclose(twice, 2 * found, rtol=1e-12)
    one = readings.mean_attention_distance(weights[2:, 1:], (2, 3), 1)
    np.testing.assert_array_equal(found[2, 1], one[0, 0])


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_prefix_that_does_not_fit_is_named(prefix):
    with pytest.raises(ValueError, match=rf"7 tokens, but prefix={prefix} and grid"):
        readings.mean_attention_distance(
            attention(1, 1, 7, 7), (2, 3), 4, prefix=prefix
        )
    with pytest.raises(ValueError, match=rf"7 tokens, but prefix={prefix} and grid"):
        readings.rollout_map(
            attention(1, 7, 7), np.eye(7)[:1], grid=(2, 3), prefix=prefix
        )


def test_entropy_is_0_for_one_key_and_log_k_for_all_alike():
    one = np.broadcast_to(np.eye(5), (2, 3, 5, 5))
    assert np.all(readings.attention_entropy(one) == 0)
    alike = np.full((2, 3, 4, 5), 1 / 5)
    found = readings.attention_entropy(alike)
    np.testing.assert_allclose(found, np.full((2, 3), np.log(5)), rtol=1e-12)


def test_every_row_of_a_rollout_sums_to_one():
    rollout = readings.attention_rollout(attention(4, 2, 3, 7, 7))
    assert rollout.shape == (4, 2, 7, 7)
    np.testing.assert_allclose(rollout.sum(axis=-1), 1, rtol=1e-12)


def test_a_list_of_maps_rolls_out_as_their_stack_does():
    maps = attention(4, 2, 3, 7, 7)
    np.testing.assert_array_equal(
        readings.attention_rollout(list(maps)), readings.attention_rollout(maps)
    )


def test_tokens_that_see_only_themselves_stay_apart():
    maps = np.broadcast_to(np.eye(5), (3, 2, 4, 5, 5))
    np.testing.assert_array_equal(
        readings.attention_rollout(maps), np.broadcast_to(np.eye(5), (3, 2, 5, 5))
    )


def test_a_later_block_reads_what_an_earlier_one_wrote():
    """Token 1 takes token 2, then token 0 takes token 1: half and half each time."""
    first, second = np.eye(3), np.eye(3)
    first[1] = [0, 0, 1]
    second[0] = [0, 1, 0]
    rollout = readings.attention_rollout([m[None, None] for m in (first, second)])
    np.testing.assert_allclose(rollout[-1, 0, 0], [0.5, 0.25, 0.25], rtol=1e-12)


def test_rollout_refuses_a_pooling_and_no_map_at_all():
    with pytest.raises(ValueError, match="map 1 has 1 queries and 7 keys"):
        readings.attention_rollout([attention(2, 3, 7, 7), attention(2, 3, 1, 7)])
    with pytest.raises(ValueError, match="rollout needs the map of each block"):
        readings.attention_rollout([])


def test_a_rollout_map_is_the_mean_of_the_rows_by_what_is_read():
    rollout = attention(2, 7, 7)
    shares = attention(2, 7, seed=1)
    found = readings.rollout_map(rollout, shares, (2, 3), prefix=1)
    for image in range(2):
        wanted = sum(shares[image, t] * rollout[image, t] for t in range(7))
        np.testing.assert_allclose(found[image], wanted[1:].reshape(2, 3), rtol=1e-12)


def test_similarity_is_a_cosine_of_patches_alone():
    table = np.random.default_rng(0).normal(size=(7, 5))
    found = readings.position_similarity(table, prefix=1)
    assert found.shape == (6, 6)
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-12)
    scaled = table * np.array([[9], [1], [2], [3], [1], [5], [7]])
    scaled[0] = np.nan  # the class token's
    np.testing.assert_allclose(
        readings.position_similarity(scaled, prefix=1), found, atol=1e-12
    )


def test_filters_of_the_other_sign_have_the_same_components():
    kernel = np.random.default_rng(0).normal(size=(3, 2, 3, 11))
    found = readings.patch_filter_pca(kernel, 5)
    other = readings.patch_filter_pca(-kernel, 5)
    for name in ("components", "explained_variance", "minmax"):
        np.testing.assert_allclose(
            getattr(other, name), getattr(found, name), atol=1e-12
        )
    np.testing.assert_array_equal(other.mean, -found.mean)


def test_components_are_orthonormal_and_explain_all_where_all_are_asked_for():
    kernel = np.random.default_rng(0).normal(size=(2, 2, 1, 9))
    found = readings.patch_filter_pca(kernel)
    assert found.components.shape == (4, 2, 2, 1), "no more than 4 pixels"
    flat = found.components.reshape(4, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(found.explained_variance_ratio.sum(), 1, rtol=1e-12)
    total = kernel.var(axis=-1, ddof=1).sum()
    np.testing.assert_allclose(found.explained_variance.sum(), total, rtol=1e-12)
    assert readings.patch_filter_pca(kernel[..., :3]).components.shape[0] == 2
    for shown in found.minmax:
        assert (shown.min(), shown.max()) == (0, 1)


def golden(name: str, dtype: str) -> tuple[dict, dict]:
    """(readings of the reference, ours) by name."""
    wanted = dict(np.load(GOLDEN / "analysis" / f"{name}.npz"))
    weights = dict(np.load(GOLDEN / "google" / f"{name}_ckpt.npz"))
    seen = np.load(GOLDEN / "google" / f"{name}_io.npz")
    maps = seen["attention"].astype(dtype)
    kernel = weights["embedding/kernel"].astype(dtype)
    table = weights["Transformer/posembed_input/pos_embedding"][0].astype(dtype)
    prefix, tokens = int("cls" in weights), maps.shape[-1]
    grid, patch = seen["stem"].shape[1:3], kernel.shape[0]

    def distances(**options):
        return np.stack(
            [
                readings.mean_attention_distance(
                    m, grid, patch, prefix=prefix, **options
                )
                for m in maps
            ],
            axis=1,
        )

    rollout = readings.attention_rollout(maps)
    mean = np.full((1, tokens), 1 / tokens, dtype)
    read = np.eye(tokens, dtype=dtype)[:1] if prefix else mean
    pca = readings.patch_filter_pca(kernel)._asdict()
    return wanted, {
        "mean_attention_distance": distances().mean(axis=0),
        "mean_attention_distance_renormalized": distances(renormalize=True).mean(
            axis=0
        ),
        "mean_attention_distance_per_image": distances(),
        "rollout": rollout,
        "rollout_map": readings.rollout_map(rollout[-1], read, grid, prefix=prefix),
        "attention_entropy_nats": np.stack(
            [readings.attention_entropy(m).mean(axis=0) for m in maps]
        ),
        "posemb_similarity": readings.position_similarity(table, prefix=prefix),
        **{f"pca_{part}": array for part, array in pca.items()},
    }


# Of the reference's README; float32 rounds sums of up to 17 x 17 weights, and a component
# turns where its variance is close to the next one's.
TOLERANCES = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-3)}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["token", "token_prelogits", "gap"])
def test_readings_are_those_of_the_reference(name, dtype):
    wanted, ours = golden(name, dtype)
    assert ours.keys() == wanted.keys()
    usual, of_pca = TOLERANCES[dtype]
    for part, array in wanted.items():
        assert ours[part].dtype == dtype, part
        tolerance = of_pca if part.startswith("pca") else usual
        np.testing.assert_allclose(
            ours[part], array, rtol=0, atol=tolerance, err_msg=part
        )
