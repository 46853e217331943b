"""`python -m attn_jax predict`: predictions for images or texts."""

import argparse
import colorsys
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich import console, progress

from attn_jax import commands
from attn_jax.commands.inputs import list_inputs
from attn_jax.convert import is_run
from attn_jax.folder import expand_local
from attn_jax.predict import open_predictor

EXAMPLES = """examples:
  %(prog)s --workdir=runs/digits photo.png folder/
  %(prog)s --workdir=runs/bert "the cat sat on the [MASK] ."
  %(prog)s --workdir=runs/squad --question="who wrote it?" --passage="It was ..."
  %(prog)s --workdir=runs/slots folder/ --out=masks/
  %(prog)s --from=vit_b16 --json --file=list_of_images.txt
  %(prog)s --from=bert_base --embed=mean --out=vectors.npz --file=-  < texts.txt
"""

GOLDEN_RATIO = 0.618034  # between hues, so that neighbors differ and none repeats


def main(arguments: Sequence[str]) -> None:
    """Prints the result of each input; exit status 1 if one of them could not be read."""
    parser = commands.make_parser("predict", "Predict for images or texts.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="texts, or image files and folders of them",
    )
    commands.add_source_arguments(parser)
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        help="read inputs from a file, one per line; in FILE.jsonl each line is JSON, such as "
        'an object with the fields of the task; "-" is stdin; repeatable',
    )
    parser.add_argument("--question", help="with --passage: what to find in it")
    parser.add_argument("--passage", help="text that contains the answer")
    parser.add_argument("--json", action="store_true", help="one JSON line per input")
    parser.add_argument(
        "--top", type=int, default=5, help="classes or words to list; default 5"
    )
    parser.add_argument(
        "--embed",
        metavar="KIND",
        help="write vectors instead: mean, cls or pooled; mean:L or cls:L of layer L",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.npz",
        help="of the vectors of --embed; of segments, a folder: an image of slot numbers each",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="default 32")
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    check_options(options)
    inputs = list(list_inputs(options))
    if not inputs:
        raise ValueError("there is no input; give INPUT, --file or --question.")
    checkpoint = options.workdir or options.checkpoint
    if not is_run(checkpoint):
        commands.check_run_flags(options, checkpoint)
    predictor = open_predictor(
        checkpoint,
        step=options.step or "latest",
        params=options.params,
        embed=options.embed,
        trust=options.trust,
    )
    task = predictor.task
    if options.embed is None and getattr(task, "class_names", ()) is None:
        print(
            "WARNING: the checkpoint does not name its classes; labels are their numbers.",
            file=sys.stderr,
        )
    inputs = list(predictor.expand(inputs))
    results = predictor.run(inputs, top=options.top, batch_size=options.batch_size)
    results = show_progress(results, len(inputs))
    folder = open_folder(task, options)
    taken: set[str] = set()
    failed = cut = 0
    vectors: list[dict[str, Any]] = []
    for result in results:
        if "error" in result:
            failed += 1
            name = result.get("input") or result.get("file") or result.get("text")
            shown = "" if str(name) in result["error"] else f"{name}: "
            print(f"error: {shown}{result['error']}", file=sys.stderr)
        cut += "pieces_cut" in result
        if "segments" in result:
            result["segments"] = save_segments(result, folder, taken)
        if options.embed is not None and "error" not in result:
            vectors.append(result)
        elif options.json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        elif "error" not in result:
            print("\n".join(format_result(result)), flush=True)
    if options.embed is not None and vectors:
        print(save_vectors(vectors, expand_local(options.out)))
    if cut:
        print(
            f"WARNING: {cut} of {len(inputs)} inputs were longer than a row of the model and were "
            "cut; --json shows by how many word pieces (pieces_cut).",
            file=sys.stderr,
        )
    if failed:
        sys.exit(f"error: {failed} of {len(inputs)} inputs gave no result; see above.")
    return []


def check_options(options: argparse.Namespace) -> None:
    if (options.question is None) != (options.passage is None):
        raise ValueError("--question and --passage belong together; give both.")
    if options.embed is not None and options.out is None:
        raise ValueError("--embed and --out=FILE.npz belong together; give both.")
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)} must be 1 or more.")
    if options.embed is not None and not options.out.endswith(".npz"):
        raise ValueError(f"--out={options.out} must be FILE.npz.")


def open_folder(task: Any, options: argparse.Namespace) -> pathlib.Path:
    """Makes the folder of `--out` for a task that segments images.

    Raises:
        ValueError: `--out` is missing, or given for a task that writes no files.
    """
    segments = getattr(task, "SEGMENTS", False) and options.embed is None
    if segments and options.out is None:
        raise ValueError(
            "this run segments images; give --out=FOLDER for the images of slot numbers."
        )
    if not segments and options.embed is None and options.out is not None:
        raise ValueError(
            f"--out={options.out} is for --embed, or for a run that segments images; leave it "
            "out."
        )
    folder = expand_local(options.out or "")
    if segments:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_segments(result: dict[str, Any], folder: pathlib.Path, taken: set[str]) -> str:
    """Writes a PNG whose pixels are the numbers of slots; returns the path.

    It has a palette, so that viewers show colors. Of inputs of one name, the later ones get a number.

    Args:
        taken: the names of the files so far; that of this one is added.
    """
    stem = name = pathlib.PurePath(result.get("file", "image")).stem
    while name in taken:
        name = f"{stem}-{len(taken) + 1}"
    taken.add(name)
    image = Image.fromarray(result["segments"], "P")
    hues = (GOLDEN_RATIO * number % 1 for number in range(256))
    colors = [colorsys.hsv_to_rgb(hue, 0.7, 0.95) for hue in hues]
    image.putpalette([round(255 * part) for color in colors for part in color])
    image.save(folder / f"{name}.png")
    return str(folder / f"{name}.png")


def show_progress(
    results: Iterator[dict[str, Any]], total: int
) -> Iterator[dict[str, Any]]:
    """Yields the results, with a bar on stderr if both it and the work are worth it."""
    screen = console.Console(stderr=True)
    hidden = not screen.is_terminal or sys.stdout.isatty() or total < 100
    yield from progress.track(results, "", total, console=screen, disable=hidden)


def save_vectors(vectors: Sequence[dict[str, Any]], path: pathlib.Path) -> str:
    """Writes `embedding` [N, D], float32, and `inputs` [N], their names; returns the path.

    With multiple choice each ending has a row.
    """
    names = [name for vector in vectors for name in name_rows(vector)]
    matrix = np.concatenate([np.atleast_2d(v["embedding"]) for v in vectors])
    path.parent.mkdir(parents=True, exist_ok=True)
    # As text, which NumPy reads without pickle.
    np.savez(path, embedding=matrix, inputs=np.array(names, dtype=np.str_))
    return str(path)


def name_rows(vector: dict[str, Any]) -> list[str]:
    """The file or the text of an input; its fields as JSON if it has several."""
    left_out = ("embedding", "words", "pieces_cut")
    given = {k: v for k, v in vector.items() if k not in left_out}
    if "endings" in given:
        pairs = [
            {"context": given["context"], "ending": end} for end in given["endings"]
        ]
        return [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    if "file" in given or given.keys() == {"text"}:
        return [given.get("file") or given["text"]]
    return [json.dumps(given, ensure_ascii=False)]


def format_result(result: dict[str, Any]) -> list[str]:
    """Formats a result for people."""

    def percent(ranked: Sequence[dict[str, Any]]) -> str:
        return "   ".join(
            f"{entry['label']} {100 * entry['probability']:.1f} %" for entry in ranked
        )

    if "masks" in result:
        guesses = [f"    {percent(ranked)}" for ranked in result["masks"]]
        return [result["filled"], *guesses]
    if "candidates" in result:
        lines = [result["answer"] or "(no answer)"]
        for entry in result["candidates"]:
            where = (
                "" if entry["start"] is None else f", from character {entry['start']}"
            )
            shown = entry["answer"] or "(no answer)"
            lines.append(f"    {100 * entry['probability']:.1f} %  {shown}{where}")
        return [*lines, f"    {result['note']}"] if "note" in result else lines
    if "entities" in result:
        found = [
            f"    {entry['type']}: {entry['text']}" for entry in result["entities"]
        ]
        return [result["text"], *(found or ["    no entities"])]
    texts = dict.fromkeys(v for v in result.values() if isinstance(v, str))
    name = " | ".join(texts)
    if "predictions" in result:
        ranked = percent(result["predictions"])
        if "labels" in result:
            ranked = f"{', '.join(result['labels']) or 'no label'}   ({ranked})"
        lines = [f"{name}: {ranked}"]
        if "weights" in result:
            shown = (
                f"{w['instance']} {100 * w['weight']:.1f} %" for w in result["weights"]
            )
            lines.append(f"    weights of the instances: {'   '.join(shown)}")
        return lines
    rest = {key: value for key, value in result.items() if not isinstance(value, str)}
    return [f"{name}: {json.dumps(rest, ensure_ascii=False)}"]
