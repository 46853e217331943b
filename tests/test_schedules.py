"""The schedule against values of the original code, then its ends and errors."""

import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import schedules

GOLDEN = pathlib.Path(__file__).parent / "golden"


def schedule(name, total_steps=12, **arguments):
    section = {"name": name, **arguments}
    return schedules.make_schedule(section, total_steps=total_steps, to_steps=to_steps)


def to_steps(duration):
    number, unit = duration.split()
    return int(number) * {"steps": 1, "epochs": 10}[unit]


@pytest.mark.parametrize(
    "reference, section, peak",
    [
        ("bv_cosine_w10", dict(name="cosine", warmup="10 steps"), 1),
        ("bv_cosine_w10", dict(name="cosine", warmup="1 epochs"), 1),
        ("bv_linear_w5_end1e-2", dict(name="linear", warmup="5 steps", final=0.01), 1),
        (
            "bv_rsqrt_w10_c20",
            dict(
                name="rsqrt",
                warmup="10 steps",
                timescale="20 steps",
                cooldown="20 steps",
            ),
            1,
        ),
        ("vt_cosine", dict(name="cosine", warmup="10 steps"), 0.03),
        # vision_transformer's linear ends at a rate of 1e-5.
        ("vt_linear", dict(name="linear", warmup="10 steps", final=0.01), 0.001),
    ],
)
def test_schedules_give_googles_values_at_every_step(reference, section, peak):
    vit = np.load(GOLDEN / "vit/optim/trace.npz")
    settings = json.loads((GOLDEN / "vit/optim/trace_config.json").read_text())
    total = settings["schedules"][reference]["total_steps"]
    ours = peak * schedule(total_steps=total, **section)(jnp.arange(total + 1))
    # Two float32 roundings of the peak; one step more or less moves most values by 1e-3 of it.
    golden = vit[f"schedule/{reference}"]
    np.testing.assert_allclose(ours, golden, rtol=0, atol=3e-7 * peak)


def test_bert_linear_gives_googles_values_and_jumps_after_the_warm_up():
    for case in json.loads((GOLDEN / "bert/optim/schedules.json").read_text())[
        "google_linear"
    ]:
        factor = schedule(
            "bert_linear",
            total_steps=case["num_train_steps"],
            warmup=f"{case['num_warmup_steps']} steps",
        )
        ours = factor(jnp.array(case["steps"]))
        golden = np.array(case["lr_float64"]) / case["init_lr"]
        np.testing.assert_allclose(ours, golden, rtol=2e-7, atol=1e-12)  # one rounding


def test_bert_linear_with_a_power_gives_nvidias_values():
    for case in json.loads((GOLDEN / "bert/optim/schedules.json").read_text())[
        "nvidia_poly"
    ]:
        warmup = math.ceil(case["warmup_fraction"] * case["total_steps"])
        factor = schedule(
            "bert_linear",
            total_steps=case["total_steps"],
            warmup=f"{warmup} steps",
            power=case["degree"],
        )
        ours = factor(jnp.array(case["steps"]))
        golden = np.array(case["lr"]) / case["base_lr"]
        # The original's warm-up is no whole number of steps: 2000.9 and 200.06 of them.
        np.testing.assert_allclose(ours, golden, rtol=5e-3, atol=1e-12)
        falling = np.array(case["steps"]) >= warmup
        assert falling.sum() >= 3
        # The root of a float32 near zero: half its relative rounding of 1e-7 / 1e-4.
        np.testing.assert_allclose(ours[falling], golden[falling], rtol=1e-6, atol=0)


@pytest.mark.parametrize("task", ["object_discovery", "set_prediction"])
def test_exponential_gives_the_rates_of_slot_attention(shared, task):
    golden = np.load(shared / "golden/slot_attention/lr_schedule.npz")
    settings = {
        key: golden[f"{task}/{key}"].item() for key in ("base_lr", "decay_rate")
    }
    assert settings["decay_rate"] == 0.5
    factor = schedule(
        "exponential",
        total_steps=500_000,
        warmup=f"{golden[f'{task}/warmup_steps']} steps",
        half_life=f"{golden[f'{task}/decay_steps']} steps",
    )
    ours = settings["base_lr"] * factor(jnp.asarray(golden[f"{task}/steps"], jnp.int32))
    np.testing.assert_allclose(ours, golden[f"{task}/lr64"], rtol=3e-7)  # float32 power


def test_a_schedule_with_a_warm_up_starts_at_zero_and_is_a_factor():
    for name in schedules.SCHEDULES:
        values = schedule(name, total_steps=100, warmup="10 steps")(jnp.arange(111))
        assert values[0] == 0 and values[5] > 0.4, name
        assert values.min() >= 0 and values.max() <= 1, name  # after the end too


def test_a_schedule_without_a_warm_up_starts_at_one():
    for name in schedules.SCHEDULES:
        assert schedule(name)(jnp.array(0)) == 1, name


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_ends_at_the_final_factor_asked_for(name):
    values = schedule(name, final=0.25)(jnp.array([0, 6, 12, 13]))
    # Half-way is the mean of 1 and final for both; a float32 cosine is off by 1e-7.
    np.testing.assert_allclose(values, [1, 0.625, 0.25, 0.25], rtol=0, atol=2e-7)


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'cosin' is unknown.* linear, cosine"):
        schedule("cosin")


def test_a_warm_up_longer_than_the_run_is_refused():
    schedule("cosine", total_steps=12, warmup="12 steps")
    with pytest.raises(
        ValueError, match="'2 epochs' takes 20 steps, but the run has 12"
    ):
        schedule("cosine", total_steps=12, warmup="2 epochs")
    with pytest.raises(ValueError, match="cooldown='9 steps' take 13 steps"):
        schedule("rsqrt", total_steps=12, warmup="4 steps", cooldown="9 steps")
