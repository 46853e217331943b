"""Estimates the time of a step from what it computes, touches and sends, by the data sheet."""

import dataclasses

from attn_jax.plan.hlo import Collective, Program
from attn_jax.plan.topologies import Chip

ASSUMPTIONS = (
    "products run at the chip's peak rate for bfloat16, elementwise operations are free",
    "memory traffic: operands and results of every fused operation, at the full rate of HBM",
    "computation and memory traffic overlap, collectives overlap with nothing",
    "collectives use all links of a chip at their full rate, as rings; no latency",
    "between slices each device sends its share of the slice over the data-center network",
    "so a measured step is slower; plans compare layouts better than they predict seconds",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step: `step` is the larger of `compute` and `memory`, plus `ici` and `dcn`.

    Attributes:
        compute: matrix products.
        memory: traffic of HBM.
        ici, dcn: collectives within a slice, and between slices.
        mfu: model FLOPs utilization, from 0 to 1.
    """

    compute: float
    memory: float
    ici: float
    dcn: float
    mfu: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory) + self.ici + self.dcn

    @property
    def bound(self) -> str:
        """What takes the most time."""
        parts = ("compute", "memory", "ici", "dcn")
        return max(parts, key=lambda name: getattr(self, name))


def estimate(
    program: Program,
    chip: Chip,
    *,
    executed_flops: float,
    model_flops: float,
    devices: int,
    slices: int = 1,
) -> Estimate:
    """The roofline estimate of a step.

    Args:
        executed_flops, model_flops: of all devices; with and without what `remat` repeats.
        devices, slices: how many.
    """
    ici = dcn = 0.0
    for one in program.collectives:
        sent = one.times * count_traffic(one, devices // slices, slices)
        if one.between_slices:
            dcn += sent / chip.dcn
        else:
            ici += sent / chip.ici
    compute = executed_flops / (devices * chip.flops)
    found = Estimate(compute, program.bytes_touched / chip.hbm, ici, dcn, 0.0)
    mfu = model_flops / (found.step * devices * chip.flops)
    return dataclasses.replace(found, mfu=mfu)


def count_traffic(one: Collective, devices: int, slices: int) -> float:
    """Bytes that a device sends for a collective.

    In a ring of n devices, an all-gather or reduce-scatter of b bytes sends b (n - 1) / n, an
    all-reduce twice that. Between s slices, a device sends its b bytes to each other one, or
    2 b (s - 1) / s for an all-reduce.

    Args:
        devices: of a slice.
    """
    reduces = one.kind == "all-reduce"
    if one.between_slices:
        return one.bytes * (slices - 1) * (2 / slices if reduces else 1)
    if one.kind == "collective-permute":
        return one.bytes
    members = len(one.groups[0]) if one.groups else devices
    return (2 if reduces else 1) * one.bytes * (members - 1) / members
