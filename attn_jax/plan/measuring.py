"""Runs a planned step on the devices that are here, and puts the measurement beside the plan."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from attn_jax import metrics
from attn_jax.data import pipeline
from attn_jax.plan.report import Plan
from attn_jax.plan.topologies import GIB

WARM_UP, STEPS = 2, 8


def measure(plan: Plan) -> dict[str, Any] | None:
    """Median seconds of a step, and the highest memory of a device; None: it does not fit.

    The parameters are new ones, every row is the same; the batch is on the devices already, so
    reading data is not part of it. `memory` is None where the backend does not report it.
    """
    run, step = plan.run, plan.compiled.step
    if step is None or not plan.facts["fits"]:
        return None
    row = pipeline.evaluation_row(run.source, run.task, plan_rows(run.source), 1, 0)
    batch = run.place(
        {name: np.stack([value] * len(run.rows)) for name, value in row.items()}
    )
    state = run.init_state(run.init_params())
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        state, sums = step(state, batch)
        jax.block_until_ready((state, sums))
        seconds.append(time.perf_counter() - began)
    stats = run.mesh.devices.reshape(-1)[0].memory_stats() or {}
    median = statistics.median(seconds[WARM_UP:])
    peak = metrics.peak_flops(run.mesh.devices.reshape(-1)[0].device_kind)
    flops = plan.facts["flops"]["model"]
    return {
        "steps": STEPS,
        "seconds": median,
        "rows_per_second": run.config.batch_size / median,
        "mfu": metrics.mfu(flops, median, peak * run.mesh.size) if peak else None,
        "memory": stats.get("peak_bytes_in_use"),
    }


def plan_rows(source: Any) -> Any:
    """The source's own plan of rows; None: rows are records."""
    return source.rows(0, 0) if hasattr(source, "rows") else None


def describe(facts: dict[str, Any]) -> list[str]:
    """The lines of a measurement beside its plan."""
    found, memory = facts["measured"], facts["memory"]
    if found is None:
        return ["  measured     nothing, as the step does not fit"]
    planned = f", planned {facts['time']['step'] * 1e3:.1f}" if facts["time"] else ""
    mfu = "" if found["mfu"] is None else f", MFU {found['mfu']:.0%}"
    lines = [
        f"  measured     {found['seconds'] * 1e3:.1f} ms a step{planned} (median of "
        f"{found['steps']}), {found['rows_per_second']:,.0f} rows/s{mfu}"
    ]
    if found["memory"] is None:
        return [*lines, "  measured     no memory: this backend does not report it"]
    share = found["memory"] / memory["total"] - 1
    return [
        *lines,
        f"  measured     {found['memory'] / GIB:.3f} GiB at most, planned "
        f"{memory['total'] / GIB:.3f} ({share:+.1%})",
    ]
