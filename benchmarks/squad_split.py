"""A small BERT learns to answer questions: articles to learn from, and others to be asked about.

    python benchmarks/pretrain_novels.py --data=novels --out=runs/novels
    python benchmarks/squad_split.py --squad=dev-v1.1.json --checkpoint=runs/novels

Every sixth article of the file is held out; configs/bert/squad.py:v1,4x256 is trained on the others
from the checkpoint, and asked about the held-out ones. Three baselines show what can be had
without the question: the same training on files in which every question is the one word "What";
the first sentence of the passage; and a random span, drawn by seed 0. All are scored by the official EM and F1. A run that has ended is only
evaluated again.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import sys

import commands
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax.data import squad, squad_scores

EVERY = 6
BLIND = "What"


def write_split(file: pathlib.Path, folder: pathlib.Path, blind: bool) -> None:
    """Writes train-v1.1.json and dev-v1.1.json, whose articles differ."""
    articles = json.loads(file.read_text())["data"]
    if blind:
        for question in list_questions(articles):
            question["question"] = BLIND
    parts = {
        "train": [a for number, a in enumerate(articles) if number % EVERY],
        "dev": articles[::EVERY],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        text = json.dumps({"version": "1.1", "data": part})
        (folder / f"{name}-v1.1.json").write_text(text)


def list_questions(articles: list[dict]) -> list[dict]:
    return [q for a in articles for p in a["paragraphs"] for q in p["qas"]]


def score_baselines(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """Scores the first sentence and a random span of every passage."""
    questions = squad.read_split(str(folder), "validation", "1.1", 0)
    draw = random.Random(0)
    first, spans = {}, {}
    for question in questions:
        first[question.id] = question.context.split(". ")[0]
        begin = draw.randrange(len(question.words))
        spans[question.id] = " ".join(
            question.words[begin : begin + draw.randint(1, 5)]
        )
    return {
        name: squad_scores.average_scores(
            squad_scores.score_questions(questions, answers, version="1.1")
        )
        for name, answers in (
            ("the first sentence", first),
            ("a random span of 1 to 5 words", spans),
        )
    }


def train(
    options: argparse.Namespace, data: pathlib.Path, workdir: pathlib.Path
) -> dict:
    settings = [
        f'init_from=[["{options.checkpoint.resolve()}","",""]]',
        "model.vocab_size=8000",  # those of the novels
        "task.vocab_size=8000",
        f"task.data={data}",
        f"task.sequence_length={options.length}",
        f'duration="{options.epochs} epochs"',
        f'schedule.warmup="{options.epochs / 10:g} epochs"',
        f"optimizer.learning_rate={options.rate}",
        f"seed={options.seed}",
    ]
    commands.train("configs/bert/squad.py:v1,4x256", workdir, settings)
    return commands.evaluate(workdir) | {"seconds": commands.count_seconds(workdir)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squad", required=True, type=pathlib.Path)
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="2: both trainings at once")
    parser.add_argument("--out", default="runs/squad_split", type=pathlib.Path)
    options = parser.parse_args()
    folders = [options.out.resolve() / name for name in ("whole", "blind")]
    for folder in folders:
        write_split(options.squad, folder / "data", blind=folder.name == "blind")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda f: train(options, f / "data", f / "run"), folders))
    rows = {
        name: {key: scores[f"validation/{key}"] for key in ("exact_match", "f1")}
        for name, scores in zip(
            ("passage and question", "passage only"), found, strict=True
        )
    }
    minutes = [f"{scores['seconds'] / 60:.1f}" for scores in found]
    rows |= score_baselines(options.out.resolve() / "whole" / "data")
    counts = []
    for part in ("train", "dev"):
        file = options.out / "whole" / "data" / f"{part}-v1.1.json"
        articles = json.loads(file.read_text())["data"]
        counts.append(f"{len(list_questions(articles)):,} questions of {len(articles)}")
    command = (
        f"python benchmarks/squad_split.py --squad={options.squad.name} "
        f"--checkpoint={options.checkpoint.name} --length={options.length} "
        f"--epochs={options.epochs} --rate={options.rate:g} --seed={options.seed}"
    )
    report.write(
        "squad split",
        [
            "### Questions about articles that were held out",
            "",
            f"`{command}`",
            f"({report.provenance()})",
            "",
            f"Trained on {counts[0]} articles, asked {counts[1]} others; training took "
            f"{' and '.join(minutes)} minutes.",
            "",
            "| reads | EM | F1 |",
            "|---|---|---|",
            *(
                f"| {name} | {row['exact_match']:.1f} | {row['f1']:.1f} |"
                for name, row in rows.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
