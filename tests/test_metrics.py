"""Counts against products worked out by hand; all sizes are different primes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from sklearn.metrics import adjusted_rand_score
from slot_models import GOLDEN, load

from attn_jax import metrics

B, T, D, F = 2, 3, 5, 7
IMAGE, KERNEL = (B, 11, 13, 3), (5, 2, 3, 7)
NHWC = ("NHWC", "HWIO", "NHWC")


def count(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return metrics.count_flops(jax.make_jaxpr(function)(*arrays))


def dense(x, kernel):
    return jnp.tanh(x @ kernel)


def convolve(image, kernel, **options):
    options = dict(window_strides=(1, 1), padding="VALID") | options
    return jax.lax.conv_general_dilated(
        image, kernel, dimension_numbers=NHWC, **options
    )


def test_a_dense_layer_costs_two_operations_per_weight_and_row():
    assert count(dense, (B, D), (D, F)) == 2 * B * D * F


def test_attention_costs_two_products_of_every_query_with_every_key():
    def attention(query, key, value):
        weights = jnp.einsum("BQNC,BKNC->BNQK", query, key)
        return jnp.einsum("BNQK,BKNC->BQNC", weights, value)

    B, Q, K, N, C = 2, 3, 5, 7, 11
    shapes = (B, Q, N, C), (B, K, N, C), (B, K, N, C)
    assert count(attention, *shapes) == 2 * 2 * B * N * Q * K * C


def test_a_gradient_costs_two_forward_passes_and_none_for_an_input_not_asked_for():
    def loss(kernel, x):
        return dense(x, kernel).sum()

    forward = 2 * B * D * F
    step = jax.value_and_grad(loss)
    assert count(step, (D, F), (B, D)) == 2 * forward  # x is data: no gradient
    step = jax.value_and_grad(loss, argnums=(0, 1))
    assert count(step, (D, F), (B, D)) == 3 * forward


def test_a_scan_counts_its_body_once_for_every_round():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (dense(x, kernel), None), x, kernels)[0]

    assert count(layers, (B, D), (T, D, D)) == T * 2 * B * D * D


def test_a_branch_counts_its_dearest_side():
    def branch(x, kernel):
        return jax.lax.cond(x[0, 0] > 0, dense, lambda x, kernel: x, x, kernel)

    assert count(branch, (B, D), (D, D)) == 2 * B * D * D


def with_own_gradient(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(None, None)
    return wrapped


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, with_own_gradient])
def test_a_wrapped_function_counts_what_it_wraps(wrap):
    assert count(wrap(dense), (B, D), (D, F)) == 2 * B * D * F


def test_rematerialisation_counts_the_forward_pass_again():
    def loss(kernel, x):
        return jax.checkpoint(lambda x: dense(dense(x, kernel), kernel))(x).sum()

    one = 2 * B * D * D
    # Forward 2, the first layer again 1, kernel gradients 2, hidden gradient 1. The
    # second product is repeated in the trace also, and the compiler then drops it.
    assert count(jax.value_and_grad(loss), (D, D), (B, D)) == (2 + 2 + 2 + 1) * one


def test_a_sharded_function_counts_all_its_devices():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec("data")
    sharded = jax.shard_map(
        dense,
        mesh=mesh,
        in_specs=(rows, PartitionSpec()),
        out_specs=rows,
        axis_names={"data"},
    )
    assert count(sharded, (4 * B, D), (D, F)) == 2 * 4 * B * D * F


def test_a_convolution_costs_one_dense_layer_per_position():
    positions = (11 - 5 + 1) * (13 - 2 + 1)
    assert count(convolve, IMAGE, KERNEL) == 2 * B * positions * 5 * 2 * 3 * 7


def test_a_group_of_features_pays_only_for_its_own_inputs():
    def grouped(image, kernel):
        return convolve(image, kernel, feature_group_count=3)

    positions = (11 - 5 + 1) * (13 - 2 + 1)
    assert count(grouped, IMAGE, (5, 2, 1, 21)) == 2 * B * positions * 5 * 2 * 21


def test_products_with_padding_do_not_count():
    def padded(image, kernel):
        return convolve(image, kernel, padding=[(1, 1), (0, 0)])

    # One axis, 4 entries, 3 taps, 4 outputs: the first and the last output meet 2.
    assert count(padded, (1, 4, 1, 1), (3, 1, 1, 1)) == 2 * (2 + 3 + 3 + 2)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2, 3)},
        {"padding": "SAME"},
        {"rhs_dilation": (2, 1)},
        {"feature_group_count": 3},
        {"lhs_dilation": (2, 2), "padding": [(1, 2), (0, 1)]},
    ],
    ids=str,
)
def test_both_gradients_of_a_convolution_cost_its_forward_pass(options):
    def loss(image, kernel):
        return jnp.tanh(convolve(image, kernel, **options)).sum()

    kernel = (5, 2, 1, 21) if "feature_group_count" in options else KERNEL
    step = jax.value_and_grad(loss, argnums=(0, 1))
    assert count(step, IMAGE, kernel) == 3 * count(loss, IMAGE, kernel)


def test_means_do_not_depend_on_how_examples_were_batched():
    first, second = {"loss": (6.0, 3)}, {"loss": (2.0, 1)}
    assert metrics.compute_means(metrics.add(first, second)) == {"loss": 2.0}


def test_a_mean_of_nothing_is_not_a_number():
    assert math.isnan(
        metrics.compute_means({"loss": (jnp.zeros(()), jnp.zeros(()))})["loss"]
    )


def test_batches_that_report_different_metrics_do_not_add():
    with pytest.raises(ValueError, match=r"\['loss'\] and \[\].*Report .* as \(0, 0\)"):
        metrics.add({"loss": (1.0, 1)}, {})


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),  # not an L4
        ("NVIDIA GeForce RTX 4090 D", None),  # a slower board
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v4 lite", None),  # an inference board at half the speed
        ("cpu", None),
    ],
)
def test_a_device_has_its_own_peak_or_none(device_kind, peak):
    assert metrics.peak_flops(device_kind) == peak


def test_half_the_peak_is_a_utilisation_of_one_half():
    assert metrics.mfu(flops=10.0, seconds=2.0, peak=10.0) == 0.5


# --- adjusted Rand index --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_ids_out_of_range_are_a_cluster_of_the_rand_index(seed):
    """As scikit-learn on the same labels; where those ids vanish it is off by over 0.05."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, (3, 61)).astype(np.int32)
    # Half of the pixels agree, so that the index is far from 0.
    predicted = np.where(rng.random((3, 61)) < 0.5, true, rng.integers(0, 4, (3, 61)))
    predicted = predicted.astype(np.int32)
    where = rng.random((3, 61)) < 0.8
    theirs = [
        adjusted_rand_score(t[w], p[w])
        for t, p, w in zip(true, predicted, where, strict=True)
    ]
    for outside in (
        3,
        4,
        -1,
        2**30,
        -(2**30),
    ):  # id 3 is renamed, and only 0 to 2 known
        ours = metrics.adjusted_rand_index(
            jnp.where(true == 3, outside, true),
            jnp.where(predicted == 3, outside, predicted),
            num_true=3,
            num_predicted=3,
            where=jnp.asarray(where),
        )
        # float32 sums of exact counts.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


ARI = load(GOLDEN / "ari.npz")


@functools.partial(jax.jit, static_argnames=("num_true", "num_predicted"))
def rand_index(true, predicted, num_true, num_predicted, where=None):
    return metrics.adjusted_rand_index(
        true, predicted, num_true=num_true, num_predicted=num_predicted, where=where
    )


@pytest.mark.parametrize(
    "case", ["random", "noisy_blobs", "padded", "large", "special"]
)
def test_the_rand_index_is_exact(case):
    golden = {
        name.removeprefix(f"{case}/"): value
        for name, value in ARI.items()
        if name.startswith(f"{case}/")
    }
    true, predicted = golden["true_ids"], golden["pred_ids"]
    sizes = int(golden["num_true"]), int(golden["num_pred"])
    takes_part = np.ones_like(true, bool)
    if "padding_mask" in golden:
        takes_part = golden["padding_mask"].astype(bool)
    # The golden set's own; float32 sums of exact counts, none of which cancel.
    close = dict(rtol=0, atol=5e-6)
    ours = rand_index(true, predicted, *sizes, takes_part)
    np.testing.assert_allclose(ours, golden["exact_ari"], **close)
    ours = rand_index(true, predicted, *sizes, takes_part & (true != 0))
    np.testing.assert_allclose(ours, golden["exact_fg_ari"], **close)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ([0, 0, 0, 0], [1, 1, 1, 1], 1.0),  # one cluster in both: 0 / 0
        ([0, 1, 2, 3], [3, 1, 0, 2], 1.0),  # a pixel each in both: 0 / 0
        ([2], [1], 1.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),  # R 0, E 2/3, M 2
    ],
)
def test_the_rand_index_of_small_partitions(true, predicted, expected):
    found = rand_index(np.array([true]), np.array([predicted]), 4, 4)
    # The last is a quotient of small whole numbers; the others are exact.
    np.testing.assert_allclose(found, [expected], rtol=0, atol=1e-7)
