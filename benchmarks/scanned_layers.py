"""What a loop over the layers saves and costs: compilation, size of the program, memory, time.

    python benchmarks/scanned_layers.py
    python benchmarks/scanned_layers.py --cases="BERT-large, 512 tokens" --batch_size=2 --steps=3

The train step of each model of `accelerator.py` is compiled with separate layers and with
`scan_layers=True`, in turn, in float32 without dropout. `--steps` also times it; on a CPU a step of
the largest takes half a minute.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import report
from large_models import CASES, Case

from attn_jax.config import build


def compile_gradient(case: Case, rows: int, scan: bool) -> tuple[float, Any, Any]:
    """(seconds, the compiled gradient of the loss, its abstract arguments)."""
    fields = {"scan_layers": scan, "dropout": 0.0, "attention_dropout": 0.0}
    model = build(case.model | fields)
    batch: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((rows, *draw.shape), draw.dtype)
        for name, draw in case.arrays.items()
    }
    batch["valid"] = jax.ShapeDtypeStruct((rows,), bool)

    def prepare(batch: Any) -> Any:
        step = getattr(case.task, "prepare", None)
        return batch if step is None else step(batch, jax.random.key(0), True)

    def loss(variables: Any, batch: Any) -> jax.Array:
        batch = prepare(batch)
        outputs = model.apply(variables, **case.task.inputs(batch), train=True)
        terms = case.task.loss(outputs, batch)
        return sum(
            weight * terms[name][0] / terms[name][1]
            for name, weight in case.task.coefficients.items()
        )

    inputs = jax.eval_shape(lambda batch: case.task.inputs(prepare(batch)), batch)
    variables = jax.eval_shape(
        lambda inputs: model.init(jax.random.key(0), **inputs), inputs
    )
    began = time.perf_counter()
    program = jax.jit(jax.value_and_grad(loss)).lower(variables, batch).compile()
    return time.perf_counter() - began, program, (variables, batch)


def time_step(program: Any, arguments: Any, steps: int) -> float:
    """The median seconds of a call on zeros."""
    arrays = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arguments)
    jax.block_until_ready(program(*arrays))
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = "ViT-L/16, 224 px;BERT-large, 512 tokens"
    parser.add_argument("--cases", default=default, help="with semicolons between")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--debug", action="store_true", help="tiny models")
    options = parser.parse_args()
    # The cache would answer instead of the compiler.
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for name in options.cases.split(";"):
        case = CASES[name](options.debug)
        for scan in (False, True):
            seconds, program, arguments = compile_gradient(
                case, options.batch_size, scan
            )
            memory = program.memory_analysis().temp_size_in_bytes / 2**30
            lines = len(program.as_text().splitlines())
            cells = [name, "a loop" if scan else "separate", f"{seconds:.1f}"]
            cells += [f"{lines:,}", f"{memory:.2f}"]
            if options.steps:
                cells += [f"{1e3 * time_step(program, arguments, options.steps):,.0f}"]
            rows.append(f"| {' | '.join(cells)} |")
    heads = [
        "model",
        "layers",
        "compilation, s",
        "lines of HLO",
        "temporary memory, GiB",
    ]
    heads += ["step, ms"] if options.steps else []
    report.write(
        "scanned layers",
        [
            f"### A loop over the layers: gradients of {options.batch_size} rows, float32",
            "",
            f"`python benchmarks/scanned_layers.py --batch_size={options.batch_size} "
            f"--steps={options.steps}` ({report.provenance()})",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
