"""Plans every large recipe for several topologies, none of which has to be here.

    python benchmarks/plans.py --out=plans.json

Prints a table for docs/devices.md. A plan that is in the file already is not made again. Each is
compiled with the least effort (`plan --quick`), by a process of its own: minutes for one of a
large model. Needs the TPU compiler: pip install 'attn_jax[tpu]'.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# {name: (recipe, settings)}
CASES = {
    "ViT-L/16, 224 px": ("vit/augreg_i1k:L/16", []),
    "BERT-Large, 512 tokens, packed": (
        "bert/pretrain:large,512",
        ["task.packed=8", "model.dtype=bfloat16"],
    ),
    "Slot Attention, CLEVR6": ("slot_attention/clevr6", ["batch_size=512"]),
    "Hopfield, 1M patterns": (
        "hopfield/bit_patterns:lookup_default",
        ["model.encoder.quantity=1000000", "batch_size=256"],
    ),
}
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v6e:16x16", "2*v5e:8x8", "h200:8")
# What a case needs where it does not fit as it is.
SMALLER = {("ViT-L/16, 224 px", "v5e:4x4"): ["micro_batches=4"]}


def make_plan(recipe: str, settings: list[str], topology: str) -> dict:
    """The facts of a plan, or {"error": the line of the command}."""
    command = [sys.executable, "-m", "attn_jax", "plan", f"--config={recipe}"]
    command += [f"--config.{setting}" for setting in settings]
    command += [f"--topology={topology}", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1].removeprefix("error: ")}
    return json.loads(done.stdout.splitlines()[-1])["plans"][0]


def describe(name: str, topology: str, settings: list[str], facts: dict) -> str:
    """A row of the table."""
    if "error" in facts:
        reason = facts["error"].split(": ", 1)[-1].split(";")[0].split(": that")[0]
        return f"| {name} | {topology} | | | | | not planned: {reason} |"
    memory, time, host = facts["memory"], facts["time"], facts["host"]
    sent = sum(row["bytes"] for row in facts["collectives"]) / 2**20
    gib = f"{memory['total'] / 2**30:.1f} of {memory['limit'] / 2**30:.0f}"
    extra = f", {', '.join(settings)}" if settings else ""
    cells = [f"{name}{extra}", topology, f"{facts['batch']['rows']:,}"]
    if not facts["fits"]:
        return f"| {' | '.join(cells)} | {gib} | | | does not fit |"
    rates = f"{time['step'] * 1e3:.1f} ms, {time['bound']}, MFU {time['mfu']:.0%}"
    needs = f"{host['rows_per_second_per_host']:,.0f} rows/s"
    return f"| {' | '.join([*cells, gib, f'{sent:,.0f}', rates, needs])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--case", choices=CASES, help="only this one")
    options = parser.parse_args()
    lines = [
        "| recipe | topology | batch | GiB of a device | collectives, MiB | step, estimated | a host reads |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for name, (recipe, settings) in CASES.items():
        for topology in TOPOLOGIES:
            smaller = SMALLER.get((name, topology))
            for more in [[], smaller] if smaller else [[]]:
                if options.case in (None, name):
                    key = " ".join([name, topology, *more])
                    found = (
                        json.loads(options.out.read_text())
                        if options.out.exists()
                        else {}
                    )
                    if key not in found:
                        found[key] = make_plan(recipe, settings + more, topology)
                        options.out.write_text(json.dumps(found, indent=1))
                    lines.append(describe(name, topology, more, found[key]))
                    print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
