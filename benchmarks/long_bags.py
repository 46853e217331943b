"""Hopfield pooling over bags of up to 300,000 instances: seconds and memory of a gradient.

    python benchmarks/long_bags.py

The layer has 8 heads of 32 channels and 64 learned states, and pools one bag of instances with 128
features. "all at once" keeps the weights of every state for every instance; "in chunks" is the
same layer with chunk=4096. Each size has a process of its own, which compiles the gradient of the
summed outputs with respect to the parameters and the bag, and runs it --repeats times. Memory is
what the process takes beyond its state before the compilation (CPU: largest resident set;
GPU: largest use of device memory).
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax.models.hopfield import Hopfield, HopfieldPooling

SIZES = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000]
FORMS = {"all at once": None, "in chunks": 4096}
FEATURES, STATES, HEADS, CHANNELS = 128, 64, 8, 32


def read_memory() -> int:
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(size: int, form: str, repeats: int) -> dict[str, Any]:
    layer = HopfieldPooling(
        hopfield=Hopfield(num_heads=HEADS, head_dim=CHANNELS, chunk=FORMS[form]),
        quantity=STATES,
    )
    bag = jax.random.normal(jax.random.key(0), (1, size, FEATURES))
    params = layer.init(jax.random.key(1), bag[:, :64])

    def pool(params: Any, bag: jax.Array) -> jax.Array:
        return jnp.square(layer.apply(params, bag)).sum()

    before = read_memory()
    gradient = jax.jit(jax.value_and_grad(pool, argnums=(0, 1)))
    compiled = gradient.lower(params, bag).compile()
    seconds, found = [], None
    for _ in range(repeats + 1):
        began = time.perf_counter()
        found = jax.block_until_ready(compiled(params, bag))
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds[1:]),
        "bytes": read_memory() - before,
        "value": float(found[0]),
        "gradient": float(jnp.linalg.norm(found[1][1])),
    }


def measure_apart(size: int, form: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--repeats={options.repeats}"]
    command += [f"--only={size}", f"--form={form}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        memory = "RESOURCE_EXHAUSTED" in done.stderr
        return {"error": "out of memory" if memory else (lines or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def make_table(rows: list[tuple[int, dict[str, dict]]]) -> list[str]:
    def show(row: dict[str, Any]) -> str:
        if "error" in row:
            return f"{row['error']} | "
        return f"{1e3 * row['seconds']:,.1f} | {row['bytes'] / 2**20:,.0f}"

    lines = [
        "| instances | all at once, ms | MiB | in chunks, ms | MiB | difference |",
        "|---" * 6 + "|",
    ]
    for size, forms in rows:
        whole, chunks = forms.values()
        difference = ""
        if "error" not in whole and "error" not in chunks:
            pairs = [(whole[k], chunks[k]) for k in ("value", "gradient")]
            difference = f"{max(abs(a - b) / abs(a) for a, b in pairs):.0e}"
        lines.append(f"| {size:,} | {show(whole)} | {show(chunks)} | {difference} |")
    return lines


def draw(rows: list[tuple[int, dict[str, dict]]], out: pathlib.Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for form in FORMS:
        known = [(s, r[form]) for s, r in rows if "error" not in r[form]]
        sizes = [size for size, _ in known]
        axes[0].plot(sizes, [r["bytes"] / 2**20 for _, r in known], "o-", label=form)
        axes[1].plot(sizes, [r["seconds"] for _, r in known], "o-", label=form)
    for axis, label in zip(axes, ("memory, MiB", "seconds of a gradient"), strict=True):
        axis.set(
            xlabel="instances in the bag", ylabel=label, xscale="log", yscale="log"
        )
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", type=int, metavar="SIZE", help="one size, here")
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--figure", type=pathlib.Path)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.only, options.form, options.repeats)))
        return
    rows = []
    for size in map(int, options.sizes.split(",")):
        forms = {form: measure_apart(size, form, options) for form in FORMS}
        rows.append((size, forms))
        print(size, forms, file=sys.stderr, flush=True)
    place = jax.devices()[0].platform
    if options.figure:
        draw(rows, options.figure)
    report.write(
        f"long bags {place}",
        [
            f"### Hopfield pooling over long bags ({place.upper()})",
            "",
            f"`python benchmarks/long_bags.py` ({report.provenance()}): a gradient of 64 states, 8 heads "
            "of 32 channels, 128 features, float32.",
            "",
            *make_table(rows),
        ],
    )


if __name__ == "__main__":
    main()
