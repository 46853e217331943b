"""Times training steps of large models on a GPU, beside PyTorch with torch.compile.

    python benchmarks/beside_torch.py --out=beside_torch.json
    python benchmarks/beside_torch.py --debug --out=debug.json    (tiny models on a CPU)

Needs torch, timm and transformers. Both sides take the same steps in bfloat16 (PyTorch: autocast)
with AdamW and clipping, on random batches that lie on the device. Every model has a process
of its own. The processes compile at the same time, because a GPU is lent by the minute; then they
are timed in turn (`compiling_beside` in --out counts those that still compiled). In the rows
"ours, fused" our attention is that of cuDNN through jax.nn.dot_product_attention: a trial, which
no recipe uses yet, without dropout on the attention weights.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import report

sys.path.insert(0, str(report.ROOT))

WARM_UP = 3
# (name, batch size); names of ours are those of large_models.CASES.
CASES = [
    ("ours", "ViT-L/16, 224 px", 64),
    ("ours, fused", "ViT-L/16, 224 px", 64),
    ("torch", "ViT-L/16, 224 px", 64),
    ("ours", "BERT-large, 512 tokens", 32),
    ("ours, fused", "BERT-large, 512 tokens", 32),
    ("torch", "BERT-large, 512 tokens", 32),
]


def time_steps(once: Callable[[], Any], steps: int) -> list[float]:
    seconds = []
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]


# --- one process ----------------------------------------------------------------------


def wait_for_turn() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def attend_fused() -> None:
    """Puts cuDNN's attention in the place of ours, in this process."""
    import jax
    import jax.numpy as jnp

    from attn_jax import attention

    def fuse(pending: tuple, value: jax.Array) -> jax.Array:
        query, key, scale, mask = pending
        length = query.shape[1]
        odd = (
            length % 2
        )  # cuDNN refuses odd lengths, and masks that are to be broadcast
        if mask is not None or odd:
            full = jnp.ones((1, 1, length, length), bool) if mask is None else mask
            mask = jnp.broadcast_to(full, (*full.shape[:2], length, length))
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, odd), (0, odd)))
            query, key, value = (
                jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0)))
                for x in (query, key, value)
            )
        out = jax.nn.dot_product_attention(
            query, key, value, mask=mask, scale=scale, implementation="cudnn"
        )
        return out[:, :length]

    def defer(query: Any, key: Any, *, scale: float, mask: Any = None) -> Any:
        return (query, key, scale, mask)

    attention.attention_weights, attention.mix = defer, fuse


def measure_ours(name: str, batch_size: int, fused: bool, debug: bool) -> dict:
    import accelerator
    import large_models

    make = large_models.CASES[name]

    def sized(debug: bool) -> large_models.Case:
        case = make(debug)
        model = dict(case.model)
        if fused and "attention_dropout" in model:
            model["attention_dropout"] = 0.0
        return case._replace(model=model, batch_size=batch_size)

    large_models.CASES[name] = sized
    if fused and not debug:  # no cuDNN on a CPU
        attend_fused()
    return accelerator.measure_case(name, debug, wait=wait_for_turn)


def measure_torch(name: str, batch_size: int, debug: bool) -> dict:
    import torch

    device = "cpu" if debug else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(0)
    if name.startswith("ViT"):
        import timm

        model = timm.create_model(
            "vit_tiny_patch16_224" if debug else "vit_large_patch16_224"
        )
        images = torch.randn(batch_size, 3, 224, 224, device=device)
        labels = torch.randint(0, 1000, (batch_size,), device=device)

        def loss(model: Any) -> Any:
            return torch.nn.functional.cross_entropy(model(images).float(), labels)
    else:
        from transformers import BertConfig, BertForPreTraining

        width, depth, heads = (16, 1, 2) if debug else (1024, 24, 16)
        model = BertForPreTraining(
            BertConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=4 * width,
            )
        )
        token_ids = torch.randint(0, 30_522, (batch_size, 512), device=device)
        masked = torch.rand(batch_size, 512, device=device) < 0.15
        batch = {
            "input_ids": token_ids,
            "attention_mask": torch.ones_like(token_ids),
            "labels": torch.where(masked, token_ids, -100),
            "next_sentence_label": torch.zeros_like(token_ids[:, 0]),
        }

        def loss(model: Any) -> Any:
            return model(**batch).loss

    model = model.to(device).train()
    forward = model if debug else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not debug)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            value = loss(forward)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    began = time.perf_counter()
    once()
    compilation = time.perf_counter() - began
    wait_for_turn()
    median = statistics.median(time_steps(once, 2 if debug else 20))
    memory = 0 if debug else torch.cuda.max_memory_allocated()
    return {
        "batch_size": batch_size,
        "compilation_seconds": compilation,
        "step_seconds": median,
        "memory_bytes": memory,
    }


def measure(side: str, name: str, batch_size: int, debug: bool) -> dict:
    batch_size = 2 if debug else batch_size
    if side == "torch":
        return measure_torch(name, batch_size, debug)
    return measure_ours(name, batch_size, side.endswith("fused"), debug)


# --- all of them ----------------------------------------------------------------------


def measure_together(cases: list[tuple], seconds: float, debug: bool) -> list[dict]:
    """Starts a process for each case; times them in turn, once they have compiled."""
    end = time.monotonic() + seconds
    processes, ready = [], []
    for number in range(len(cases)):
        command = [sys.executable, __file__, f"--only={number}"]
        command += ["--debug"] if debug else []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, **pipes)
        event = threading.Event()
        threading.Thread(
            target=lambda process=process, event=event: (
                process.stdout.readline(),
                event.set(),
            ),
            daemon=True,
        ).start()
        processes.append(process)
        ready.append(event)
    for event in ready:  # time for the timed steps stays
        event.wait(max(end - 5 * len(cases) - time.monotonic(), 0))
    found = []
    for process, event in zip(processes, ready, strict=True):
        if not event.is_set():
            process.kill()
            found.append({"error": f"did not compile in {seconds:.0f} s"})
            continue
        compiling = sum(not other.is_set() for other in ready)
        out, _ = process.communicate("go\n")
        lines = out.splitlines()
        if process.returncode or not lines:
            found.append({"error": "failed; its message is above"})
        else:
            found.append({**json.loads(lines[-1]), "compiling_beside": compiling})
    return found


def make_table(found: list[dict], provenance: str) -> list[str]:
    lines = [
        "### Steps on a GPU beside torch.compile",
        "",
        f"`python benchmarks/beside_torch.py` ({provenance})",
        "",
        "| model | batch | | step, ms | examples/s | memory, GiB | compilation, s |",
        "|---" * 7 + "|",
    ]
    for (side, name, batch_size), row in zip(CASES, found, strict=True):
        if "error" in row:
            lines.append(f"| {name} | {batch_size} | {side} | {row['error']} | | | |")
            continue
        lines.append(
            f"| {name} | {row['batch_size']} | {side} | {1e3 * row['step_seconds']:.1f} "
            f"| {row['batch_size'] / row['step_seconds']:,.0f} "
            f"| {row['memory_bytes'] / 2**30:.1f} | {row['compilation_seconds']:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="beside_torch.json", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case, here")
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(*CASES[options.only], options.debug)))
        return
    found = measure_together(CASES, options.seconds, options.debug)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    lines = make_table(found, report.provenance())
    if options.debug:
        print("\n".join(lines))
    else:
        report.write("beside torch", lines)


if __name__ == "__main__":
    main()
