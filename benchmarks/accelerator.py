"""Checks the losses of the models on an accelerator, and times their steps.

    python benchmarks/accelerator.py --out=accelerator.json
    python benchmarks/accelerator.py --debug --out=debug.json    (a CPU, a minute)

1. The debug recipe of each architecture is trained on this device, with float32 products,
   and its losses are compared with those of a CPU in cpu_losses.json, which
   benchmarks/debug_losses.py wrote; --cpu_losses=now computes them first.
2. The rate of a single matrix product is measured, to compare the rate of steps with.
3. Steps of the large models are timed in bfloat16, with AdamW, on random batches that are
   generated on the device: median seconds, examples and operations per second, memory.

--out and its .md are rewritten after every model. Every model has a process of its own, so its
peak of memory is its own, and a model that fails, hangs or does not fit becomes a row of the
table. So does a model for which --seconds leaves no time.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import report

sys.path.insert(0, str(report.ROOT))

import debug_losses
from large_models import CASES, DEBUG_CASES, draw_batch, with_dtype

from attn_jax import config as config_lib
from attn_jax import metrics, optim, step

RECIPES = [
    "configs/vit/digits.py",
    "configs/bert/pretrain_stdlib.py",
    "configs/hopfield/digit_bags.py",
    "configs/slot_attention/tetrominoes.py",
]
# The first loss is that of a forward pass, where another order of float32 sums gives 1e-6. Adam
# divides by the size of the gradient, so later losses differ more, by 1e-4 after 8 steps. A
# wrong mask, a missing layer or bfloat16 products change the first loss by 1e-2 or more.
FIRST_TOLERANCE, TOLERANCE = 1e-4, 1e-2
CPU_LOSSES = str(report.ROOT / "benchmarks" / "cpu_losses.json")
WARM_UP, STEPS, BUDGET_SECONDS = 3, 30, 20.0
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


# --- measurements ---------------------------------------------------------------------


def measure_case(
    name: str, debug: bool, wait: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Times steps of one model on the first device; calls `wait` before the first."""
    case = CASES[name](debug)._replace(**({"batch_size": 2} if debug else {}))
    model = config_lib.build(with_dtype(case.model, "bfloat16"))
    key = jax.random.key(0)
    batch = jax.jit(functools.partial(draw_batch, case))(key)
    params = jax.jit(functools.partial(step.init_params, model, case.task))(batch, key)
    settings = {
        "optimizer": {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01},
        "clip_norm": 1.0,
        "weight_decay_on": [".*/kernel"],
        "learning_rate_multipliers": [],
        "freeze": [],
    }
    optimizer = optim.make_optimizer(settings, params, lambda at: 1.0)
    state = step.init_state(params, optimizer, key, None)
    bound = {"model": model, "task": case.task}
    forward = functools.partial(step.eval_step, **bound)
    flops = 3 * metrics.count_flops(jax.make_jaxpr(forward)(params, batch, key))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    del params
    update = functools.partial(step.train_step, optimizer=optimizer, **bound)
    began = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    compilation = time.perf_counter() - began
    wait()
    seconds: list[float] = []
    stop = time.perf_counter() + BUDGET_SECONDS
    while len(seconds) < WARM_UP + (2 if debug else STEPS):
        began = time.perf_counter()
        state, sums = compiled(state, batch)
        jax.block_until_ready((state, sums))
        seconds.append(time.perf_counter() - began)
        if len(seconds) > WARM_UP and time.perf_counter() > stop:
            break
    median = statistics.median(seconds[WARM_UP:])
    total, count = map(float, sums["loss"])
    device = jax.devices()[0]
    peak = metrics.peak_flops(device.device_kind)
    return {
        "batch_size": case.batch_size,
        "parameters": parameters,
        "flops": flops,
        "loss": total / count,
        "steps": len(seconds) - WARM_UP,
        "compilation_seconds": compilation,
        "step_seconds": median,
        "examples_per_second": case.batch_size / median,
        "flops_per_second": flops / median,
        "mfu": peak and metrics.mfu(flops, median, peak),
        "memory_bytes": read_peak_memory(device, compiled),
    }


def read_peak_memory(device: jax.Device, compiled: Any) -> int:
    """Returns the bytes that the device counted; else those that XLA planned for a step."""
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if counted:
        return counted
    plan = compiled.memory_analysis()
    buffers = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return buffers - plan.alias_size_in_bytes + plan.temp_size_in_bytes


def measure_apart(part: str, seconds: float, *options: str) -> dict[str, Any]:
    """Runs `--only=PART` in another process; returns {"error": ...} if it fails.

    This process itself never uses the device: a TPU serves one process at a time, and
    memory of a GPU would be taken from the other process.
    """
    command = [sys.executable, __file__, f"--only={part}", *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(seconds, 0)
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {seconds:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"error": describe_failure(done.stderr)}


def describe_failure(text: str) -> str:
    if OUT_OF_MEMORY in text:
        return "out of memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "the process failed without a message"


def measure_products(debug: bool) -> dict[str, float]:
    """Measures {kind: operations per second} of products of square matrices."""
    size, rounds = (256, 2) if debug else (8192, 16)
    if jax.default_backend() == "cpu" and not debug:
        size = 1024
    kinds = {
        "bfloat16": ("bfloat16", "default"),
        "float32": ("float32", "default"),  # TF32 on NVIDIA, bfloat16 on TPU
        "float32, highest": ("float32", "highest"),
    }
    rates = {}
    for kind, (dtype, precision) in kinds.items():

        def multiply(x: jax.Array, precision: str = precision) -> jax.Array:
            def once(_: int, y: jax.Array) -> jax.Array:
                return jnp.matmul(y, x, precision=precision)

            return jax.lax.fori_loop(0, rounds, once, x)

        # With entries of variance 1 / size, products keep their scale.
        x = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
        x, run = x.astype(dtype), jax.jit(multiply)
        run(x).block_until_ready()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            run(x).block_until_ready()
            seconds.append(time.perf_counter() - began)
        rates[kind] = 2 * size**3 * rounds / statistics.median(seconds)
    return rates


def compare_losses(ours: list[dict], theirs: list[dict]) -> dict[str, float]:
    """Returns relative differences of losses; not of accuracies, which change in steps."""

    def select_losses(records: list[dict]) -> list[dict]:
        kept = [
            {k: v for k, v in r.items() if k.split("/")[-1] == "loss"} for r in records
        ]
        return [record for record in kept if record]

    ours, theirs = select_losses(ours), select_losses(theirs)
    return {
        "first": debug_losses.difference(ours[:1], theirs[:1]),
        "largest": debug_losses.difference(ours, theirs),
    }


def check_device(recipes: list[str], cpu_losses: str, debug: bool) -> dict[str, Any]:
    """Names the device, measures its products, and compares its losses with a CPU's."""
    theirs = read_cpu_losses(cpu_losses, recipes)
    losses: dict[str, Any] = {}
    for recipe in recipes:
        if "stdlib" in recipe and theirs["python"] != platform.python_version():
            text = f"the stored losses are for the text of Python {theirs['python']}"
            losses[recipe] = {"error": f"{text}; use --cpu_losses=now"}
            continue
        try:
            with jax.default_matmul_precision("highest"):
                ours = debug_losses.debug_records(recipe)
            losses[recipe] = compare_losses(ours, theirs[recipe])
        except Exception as error:  # the other recipes go on
            losses[recipe] = {"error": describe_failure(str(error))}
    return {
        "provenance": report.provenance(),
        "device": jax.devices()[0].device_kind,
        "products": measure_products(debug),
        "losses": losses,
    }


def read_cpu_losses(path: str, recipes: list[str]) -> dict[str, Any]:
    """Reads the losses of a CPU from a file; "now" computes them."""
    if path != "now":
        return json.loads(pathlib.Path(path).read_text())
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "losses.json"
        command = [sys.executable, str(report.ROOT / "benchmarks" / "debug_losses.py")]
        command += [f"--out={out}", *(f"--recipe={recipe}" for recipe in recipes)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        return json.loads(out.read_text())


# --- report ---------------------------------------------------------------------------


def make_table(found: dict[str, Any]) -> list[str]:
    """Formats the results so far as lines of Markdown."""
    if "error" in found:
        return [f"### Accelerator: {found['error']}"]
    lines = [
        f"### Accelerator: {found['device']}",
        "",
        f"`python benchmarks/accelerator.py` ({found['provenance']})",
        "",
        "Losses of debug recipes against a CPU, float32 products, relative difference:",
        "",
        "| recipe | first loss | largest of the run | |",
        "|---|---|---|---|",
    ]
    for recipe, row in found["losses"].items():
        if "error" in row:
            lines.append(f"| {recipe} | {row['error']} | | |")
            continue
        good = row["first"] <= FIRST_TOLERANCE and row["largest"] <= TOLERANCE
        verdict = "agrees" if good else "**DIFFERS**"
        lines.append(
            f"| {recipe} | {row['first']:.1e} | {row['largest']:.1e} | {verdict} |"
        )
    products = found.get("products", {})
    rates = ", ".join(f"{rate / 1e12:.3g} ({kind})" for kind, rate in products.items())
    lines += [
        "",
        f"Matrix products, TFLOP/s: {rates}.",
        "",
        "Training steps in bfloat16 with AdamW. MFU is relative to the vendor's peak, the "
        "next column to the bfloat16 product above:",
        "",
        "| model | batch | step, ms | examples/s | TFLOP/s | MFU | of product | memory, GiB |",
        "|---" * 8 + "|",
    ]
    for name, row in found["models"].items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        cells = [
            f"{row['batch_size']}",
            f"{1e3 * row['step_seconds']:.1f}",
            f"{row['examples_per_second']:,.0f}",
            f"{row['flops_per_second'] / 1e12:.3g}",
            f"{row['mfu']:.1%}" if row["mfu"] else "",
            f"{row['flops_per_second'] / products['bfloat16']:.1%}" if products else "",
            f"{row['memory_bytes'] / 2**30:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="accelerator.json", type=pathlib.Path)
    parser.add_argument(
        "--debug",
        action="store_true",
        help="a tiny model of each architecture, all in one process",
    )
    parser.add_argument(
        "--cpu_losses",
        default=CPU_LOSSES,
        metavar="FILE",
        help="written by debug_losses.py; 'now' computes them first",
    )
    parser.add_argument("--recipe", action="append", help="only these debug recipes")
    parser.add_argument(
        "--only", metavar="PART", help="run a model, or 'checks', and print JSON"
    )
    parser.add_argument(
        "--seconds", type=float, default=560.0, help="limit for all parts"
    )
    parser.add_argument("--model_seconds", type=float, default=120.0)
    options = parser.parse_args()
    recipes = options.recipe or RECIPES
    end = time.monotonic() + options.seconds

    def run(part: str, limit: float) -> dict[str, Any]:
        """Runs one part, in this process or in another."""
        if options.only or options.debug:
            if part == "checks":
                return check_device(recipes, options.cpu_losses, options.debug)
            return measure_case(part, options.debug)
        seconds = min(limit, end - time.monotonic())
        if seconds < 10:
            return {"error": "no time left"}
        chosen = [f"--recipe={recipe}" for recipe in recipes]
        return measure_apart(
            part, seconds, f"--cpu_losses={options.cpu_losses}", *chosen
        )

    if options.only:
        print(json.dumps(run(options.only, options.seconds)))
        return
    found = run("checks", options.seconds / 2) | {"models": {}}
    if options.debug:  # compilation takes most of the time
        jax.config.update("jax_disable_most_optimizations", True)
    for name in DEBUG_CASES if options.debug else CASES:
        found["models"][name] = run(name, options.model_seconds)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        text = "\n".join(make_table(found)) + "\n"
        options.out.with_suffix(".md").write_text(text)
    if options.debug:
        print(text)
    else:
        report.write("accelerator", make_table(found))


if __name__ == "__main__":
    main()
