"""A plan of a run on a topology, as a dict for JSON and as text."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attn_jax import config as config_lib
from attn_jax.plan import compiling, inputs, roofline
from attn_jax.plan.topologies import GIB, RESERVED, Topology
from attn_jax.run import Run, prepare


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled run: `facts` is what `make_plan` describes, the rest serves a measurement."""

    facts: dict[str, Any]
    run: Run
    compiled: compiling.Compiled


def make_plan(config: config_lib.Section, topology: Topology) -> Plan:
    """Compiles a run's train step for a topology and describes it.

    `facts` has `topology`, `mesh`, `batch`, `memory` (bytes of a device), `collectives` (of a
    step), `flops` (of a step, all devices), `time` (seconds; None: the chip is unknown or the
    step does not fit), `host` and `fits`.

    Raises:
        ValueError: a setting cannot be honored on this topology.
    """
    stand_in, shapes_from = inputs.find_stand_in(config)
    try:
        run = prepare(config, topology.devices, stand_in=stand_in)
    except ValueError as error:
        raise ValueError(f"{topology.name}: {error}") from error
    compiled = compiling.compile_step(run)
    memory, chip = compiled.memory, topology.chip
    limit = memory.usable or find_limit(topology)
    fits = memory.error is None and (limit is None or memory.total <= limit)
    model_flops = run.count_flops()
    estimate = None
    if compiled.program and chip:
        estimate = roofline.estimate(
            compiled.program,
            chip,
            executed_flops=compiled.flops,
            model_flops=model_flops,
            devices=len(topology.devices),
            slices=topology.slices,
        )
    facts = {
        "topology": {
            "name": topology.name,
            "devices": len(topology.devices),
            "kind": topology.devices[0].device_kind,
            "hosts": topology.hosts,
            "slices": topology.slices,
        },
        "mesh": dict(run.mesh.shape),
        "batch": {
            "rows": run.config.batch_size,
            "micro_batches": run.config.micro_batches,
            "remat": find_remat(run.config.model),
            "tokens": count_tokens(run),
            "shapes_from": shapes_from,
        },
        "parameters": compiling.count_parameters(run),
        "fits": fits,
        "memory": dataclasses.asdict(memory) | {"total": memory.total, "limit": limit},
        "collectives": list_collectives(compiled, topology),
        "unknown_loops": compiled.program.unknown_loops if compiled.program else None,
        "flops": {"model": model_flops, "executed": compiled.flops},
        "time": estimate and describe_time(estimate),
        "compile_seconds": round(compiled.seconds, 1),
    }
    return Plan(facts | {"host": describe_host(run, topology, estimate)}, run, compiled)


def find_limit(topology: Topology) -> int | None:
    """Bytes that a device has for a run: as it reports, or by the data sheet; None: unknown."""
    if topology.name == "here":
        return (topology.devices[0].memory_stats() or {}).get("bytes_limit")
    return int(topology.chip.hbm_bytes) - RESERVED if topology.chip else None


def find_remat(section: Any) -> bool | None:
    """Whether `remat` is on somewhere in a model's section; None: it has no such field."""
    found = [
        value
        for key, value in config_lib.flatten(section).items()
        if key.rpartition(".")[2] == "remat"
    ]
    return any(found) if found else None


def count_tokens(run: Run) -> int | None:
    """Tokens of a global batch, padding included; None: it is no text."""
    tokens = run.batch_shapes.get("token_ids")
    return None if tokens is None else math.prod(tokens.shape)


def list_collectives(
    compiled: compiling.Compiled, topology: Topology
) -> list[dict[str, Any]]:
    """Collectives of a step by kind, size of the group and network, the largest first."""
    totals: dict[tuple[str, int, str], list[int]] = collections.defaultdict(
        lambda: [0, 0]
    )
    for one in compiled.program.collectives if compiled.program else ():
        members = len(topology.devices) // topology.slices
        if one.between_slices:
            members = topology.slices
        elif one.groups:
            members = len(one.groups[0])
        found = totals[one.kind, members, "dcn" if one.between_slices else "ici"]
        found[0] += one.times
        found[1] += one.times * one.bytes
    rows = [
        {"kind": kind, "group": group, "link": link, "count": count, "bytes": size}
        for (kind, group, link), (count, size) in totals.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def describe_time(estimate: roofline.Estimate) -> dict[str, Any]:
    more = {"step": estimate.step, "bound": estimate.bound}
    return dataclasses.asdict(estimate) | more


def describe_host(
    run: Run, topology: Topology, estimate: roofline.Estimate | None
) -> dict[str, Any]:
    """What the input must bring: rows of a host, their memory, and rates of all hosts."""
    rows = count_host_rows(run)
    size = sum(
        math.prod(x.shape[1:]) * x.dtype.itemsize for x in run.batch_shapes.values()
    )
    workers, ahead = run.config.data_workers, run.config.data_prefetch
    # Each worker process reads ahead, and fills a buffer of finished batches.
    batches = ahead + 1 if not workers else 2 * ahead * workers + 1
    seconds = estimate and estimate.step
    tokens = count_tokens(run)
    return {
        "rows": rows,
        "bytes_per_row": size,
        "prefetched_batches": batches,
        "prefetch_bytes": batches * rows * size,
        "rows_per_second": seconds and run.config.batch_size / seconds,
        "rows_per_second_per_host": seconds and rows / seconds,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }


def count_host_rows(run: Run) -> int:
    """Rows of a global batch that one host reads."""
    size = run.config.batch_size
    every = np.arange(size)
    slices: dict[Any, Any] = dict(run.batch_sharding.devices_indices_map((size,)))
    first = min(device.process_index for device in slices)
    own = [every[i] for device, i in slices.items() if device.process_index == first]
    return len(np.unique(np.concatenate(own)))


def describe(recipe: str, facts: dict[str, Any]) -> list[str]:
    """The lines of a plan."""
    where, batch, memory = facts["topology"], facts["batch"], facts["memory"]
    axes = ", ".join(f"{axis}={size}" for axis, size in facts["mesh"].items())
    remat = {None: "none to choose", True: "on", False: "off"}[batch["remat"]]
    tokens = f", {batch['tokens']:,} tokens" if batch["tokens"] else ""
    name, unit = ("GiB", GIB) if memory["total"] >= GIB else ("MiB", 2**20)
    lines = [
        f"{recipe} on {where['name']}: {where['devices']} x {where['kind']}, "
        f"{where['hosts']} host(s), {where['slices']} slice(s), mesh {axes}",
        f"  batch {batch['rows']:,} rows{tokens}, {batch['micro_batches']} micro-batch(es), remat "
        f"{remat}, {facts['parameters']:,} parameters; shapes of {batch['shapes_from']}",
        "",
        f"  memory of a device    {name:>9}",
    ]
    names = {"activations": "activations, gradients", "program": "program, constants"}
    for key in (
        *("parameters", "optimizer", "average", "batch", "activations"),
        *("program", "padding", "total"),
    ):
        lines.append(f"    {names.get(key, key):22}{memory[key] / unit:9.3f}")
    limit = memory["limit"]
    verdict = "fits" if facts["fits"] else "DOES NOT FIT"
    if limit is None:
        lines.append("    the memory of this device is not known")
    else:
        lines.append(f"    {verdict} (of {limit / GIB:.2f} GiB)")
    if memory["error"]:
        lines.append(f"    compiler: {memory['error']}")
    if facts["collectives"]:
        lines += ["", "  collectives of a step  count      MiB  group  network"]
    for row in facts["collectives"]:
        lines.append(
            f"    {row['kind']:20}{row['count']:6}{row['bytes'] / 2**20:9.1f}{row['group']:7}"
            f"  {row['link']}"
        )
    return [*lines, "", *describe_rates(facts)]


def describe_rates(facts: dict[str, Any]) -> list[str]:
    """The lines about FLOPs, time and host."""
    flops, time, host = facts["flops"], facts["time"], facts["host"]
    lines = [
        f"  operations   {flops['model']:.3g} FLOP a step, {flops['executed']:.3g} executed"
    ]
    if time:
        parts = ", ".join(
            f"{name} {time[name] * 1e3:.1f}"
            for name in ("compute", "memory", "ici", "dcn")
        )
        lines.append(
            f"  estimate     {time['step'] * 1e3:.1f} ms a step ({parts}), MFU {time['mfu']:.0%}, "
            f"bound by {time['bound']}"
        )
        tokens = host["tokens_per_second"]
        more = f", {tokens:,.0f} tokens/s" if tokens else ""
        lines.append(
            f"  input        {host['rows_per_second']:,.0f} rows/s{more}; "
            f"{host['rows_per_second_per_host']:,.0f} rows/s a host"
        )
    lines.append(
        f"  host         {host['rows']:,} rows a step of {host['bytes_per_row']:,} bytes; "
        f"{host['prefetched_batches']} batches read ahead: {host['prefetch_bytes'] / GIB:.3f} GiB"
    )
    if facts["unknown_loops"]:
        lines.append(
            f"  {facts['unknown_loops']} loop(s) of unknown length count once in collectives and "
            "memory traffic"
        )
    lines.append(f"  compiled in {facts['compile_seconds']:.0f} s")
    return lines


def compare(plans: Sequence[dict[str, Any]]) -> list[str]:
    """A table of plans, a line each."""
    heads = ("topology", "mesh", "batch", "parts", "remat", "GiB of a device")
    widths = (-14, -10, 8, 5, 5, 15, 11, 12, 6)
    rows: list[tuple[str, ...]] = [(*heads, "step, ms", "rows/s", "MFU")]
    for facts in plans:
        memory, time, batch = facts["memory"], facts["time"], facts["batch"]
        limit = memory["limit"]
        of = f" of {limit / GIB:.1f}" if limit else ""
        end = ("does not fit", "", "")
        if facts["fits"]:
            end = ("", "", "")
        if facts["fits"] and time:
            rate = facts["host"]["rows_per_second"]
            end = (f"{time['step'] * 1e3:.2f}", f"{rate:,.0f}", f"{time['mfu']:.0%}")
        rows.append(
            (
                facts["topology"]["name"],
                "x".join(str(size) for size in facts["mesh"].values()),
                f"{batch['rows']:,}",
                str(batch["micro_batches"]),
                "yes" if batch["remat"] else "no",
                f"{memory['total'] / GIB:.2f}{of}",
                *end,
            )
        )
    return [
        " ".join(
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
