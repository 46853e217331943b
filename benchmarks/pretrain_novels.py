"""BERT pre-trained on novels: the curve of a run, and transformers beside it.

    python benchmarks/pretrain_novels.py --data=novels --steps=2500
    python benchmarks/pretrain_novels.py --data=novels --steps=2500 --peer_steps=300

The first trains configs/bert/pretrain_text.py:own,4x256 with 8,000 word pieces of its own, and
reports the losses on held-out novels. It is a run under --out: after an interruption, the same
command goes on. The second needs torch and transformers (`make parity` installs them). It takes the
same first steps twice, by turns in one process: with our step, and with transformers'
BertForPreTraining, which starts from the same exported parameters, sees the same batches and has the
same optimizer, schedule and clipping; there is no dropout. Both use the GPU where there is one.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import commands
import jax
import numpy as np
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax import config as config_lib
from attn_jax.convert import export
from attn_jax.run import prepare

RECIPE = "configs/bert/pretrain_text.py:own,4x256"
LAST = 100  # steps over which training losses are compared
WARM = 10  # first steps whose times are left out


def settings(options: argparse.Namespace) -> list[str]:
    every = f"{max(options.steps // 5, 1)} steps"
    return [
        f"task.data={options.data.resolve()}",
        f'duration="{options.steps} steps"',
        f'schedule.warmup="{options.steps // 10} steps"',
        # With dropout, the loss was still that of unigrams after 850 steps.
        "model.dropout=0.0",
        "model.attention_dropout=0.0",
        f'evals.validation.every="{every}"',
        "evals.validation.batch_size=64",
        f'checkpoint_every="{every}"',
        f"seed={options.seed}",
        *options.set,
    ]


class Peer:
    """transformers' BertForPreTraining with BERT's optimizer, in torch."""

    def __init__(self, folder: str, config: Any):
        import torch
        from transformers import BertForPreTraining

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = BertForPreTraining.from_pretrained(folder).train().to(self.device)
        self.clip = config.clip_norm
        self.rate, self.decay = (
            config.optimizer[key] for key in ("learning_rate", "weight_decay")
        )
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.params = [p for _, p in named]
        self.decayed = [
            p for n, p in named if "LayerNorm" not in n and not n.endswith("bias")
        ]
        self.mu = [torch.zeros_like(p) for p in self.params]
        self.nu = [torch.zeros_like(p) for p in self.params]

    def step(self, batch: dict[str, np.ndarray], factor: float) -> float:
        torch = self.torch
        labels = np.full(batch["token_ids"].shape, -100)
        rows, places = np.nonzero(batch["mlm_valid"])
        labels[rows, batch["mlm_positions"][rows, places]] = batch["mlm_labels"][
            rows, places
        ]
        inputs = {
            "input_ids": batch["token_ids"],
            "attention_mask": batch["mask"],
            "token_type_ids": batch["segment_ids"],
            "labels": labels,
            "next_sentence_label": batch["is_random_next"],
        }
        found = self.model(
            **{k: torch.tensor(v).long().to(self.device) for k, v in inputs.items()}
        )
        self.model.zero_grad()
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        with torch.no_grad():
            grads = [p.grad for p in self.params]
            torch._foreach_lerp_(self.mu, grads, 0.1)
            torch._foreach_mul_(self.nu, 0.999)
            torch._foreach_addcmul_(self.nu, grads, grads, 1e-3)
            below = torch._foreach_add(torch._foreach_sqrt(self.nu), 1e-6)
            rate = self.rate * factor
            torch._foreach_mul_(self.decayed, 1 - rate * self.decay)
            torch._foreach_addcdiv_(self.params, self.mu, below, -rate)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return float(found.loss.detach())


def compare(options: argparse.Namespace) -> list[str]:
    """Takes steps by turns; returns lines of the report."""
    config = config_lib.load(str(report.ROOT / RECIPE), settings(options))
    run = prepare(config)
    params = run.init_params()
    with tempfile.TemporaryDirectory() as folder:
        export(run.model, {"params": jax.device_get(params)}, folder, "hf")
        peer = Peer(folder, config)
    state, update, batches = (
        run.init_state(params),
        run.make_update(),
        run.read_batches(),
    )
    ours, theirs = ([], []), ([], [])
    for step in range(options.peer_steps):
        batch = next(batches)
        began = time.perf_counter()
        state, sums = update(state, run.place(batch))
        total, count = jax.device_get(sums["loss"])
        ours[0].append(time.perf_counter() - began)
        ours[1].append(float(total / count))
        began = time.perf_counter()
        theirs[1].append(peer.step(batch, float(run.schedule(step))))
        theirs[0].append(time.perf_counter() - began)
        if step % 20 == 0:
            print(
                step, ours[0][-1], theirs[0][-1], ours[1][-1], theirs[1][-1], flush=True
            )
    tokens = config.batch_size * config.task.sequence_length
    speeds = [tokens / statistics.median(times[WARM:]) for times, _ in (ours, theirs)]
    last = [statistics.mean(losses[-LAST:]) for _, losses in (ours, theirs)]
    return [
        "",
        f"Beside transformers, {options.peer_steps:,} steps by turns in one process:",
        "",
        "| | attn_jax | transformers on PyTorch | ratio |",
        "|---|---|---|---|",
        f"| tokens/s (median step) | {speeds[0]:,.0f} | {speeds[1]:,.0f} "
        f"| {speeds[0] / speeds[1]:.2f} |",
        f"| training loss, mean of the last {LAST} steps | {last[0]:.4f} | {last[1]:.4f} "
        f"| {last[0] / last[1]:.4f} |",
        f"| loss of the first step | {ours[1][0]:.4f} | {theirs[1][0]:.4f} | |",
    ]


def describe_curve(workdir: pathlib.Path) -> list[str]:
    records = commands.read_records(workdir)
    rows = [record for record in records if "validation/mlm_loss" in record]
    known = json.loads((workdir / "assets" / "text.json").read_text())
    return [
        f"Unigrams of the training text: {known['unigram_cross_entropy']:.3f} nats a token "
        f"(held out); "
        f"{known['tokens']['train']:,} tokens to train on, "
        f"{known['tokens']['validation']:,} held out. "
        f"Training took {commands.count_seconds(workdir) / 60:.0f} minutes.",
        "",
        "| step | held-out MLM loss | MLM accuracy | next sentence |",
        "|---|---|---|---|",
        *(
            f"| {row['step']:,} | {row['validation/mlm_loss']:.3f} "
            f"| {row['validation/mlm_accuracy']:.2%} "
            f"| {row['validation/nsp_accuracy']:.2%} |"
            for row in rows
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--peer_steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", default="runs/novels", type=pathlib.Path)
    options = parser.parse_args()
    command = f"python benchmarks/pretrain_novels.py --data={options.data.name}"
    command += f" --steps={options.steps} --seed={options.seed}"
    command += report.settings(options.set)
    if options.peer_steps:
        name, title = "novels beside transformers", "BERT on novels beside transformers"
        lines = compare(options)
        command += f" --peer_steps={options.peer_steps}"
    else:
        name, title = "novels", "BERT pre-trained on novels"
        workdir = options.out.resolve()
        commands.train(RECIPE, workdir, settings(options))
        lines = describe_curve(workdir)
    report.write(
        name,
        [f"### {title}", "", f"`{command}`", f"({report.provenance()})", "", *lines],
    )


if __name__ == "__main__":
    main()
