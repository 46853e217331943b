"""`python -m attn_jax extend-vocabulary`: a BERT with words of a field in its vocabulary."""

import argparse
import json
from collections.abc import Sequence

import jax

from attn_jax import commands, restore
from attn_jax.convert import export, is_run, load_pretrained
from attn_jax.convert.bert.extend import extend_vocabulary
from attn_jax.convert.checkpoints import count_classes, name_classes
from attn_jax.data.corpora import read_text
from attn_jax.data.vocabulary import read_vocabulary
from attn_jax.folder import expand_local


def main(arguments: Sequence[str]) -> None:
    """Prints a JSON object with the path and the numbers of words."""
    parser = commands.make_parser(
        "extend-vocabulary",
        "Write a BERT with more word pieces, as a Hugging Face folder that init_from reads.",
    )
    parser.add_argument(
        "--from", dest="source", required=True, metavar="CHECKPOINT", help="a BERT"
    )
    parser.add_argument(
        "--words", required=True, metavar="FILE", help="the words, one per line"
    )
    parser.add_argument("--to", required=True, help="folder to write to")
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    if is_run(options.source):
        module, variables, _ = restore(options.source, trust=options.trust)
    else:
        commands.check_run_flags(options, options.source)
        module, variables = load_pretrained(options.source)
    vocabulary = read_vocabulary(options.source)
    if vocabulary is None:
        raise ValueError(f"{options.source} has no vocab.txt; add that of the model.")
    words = read_text(expand_local(options.words)).split()
    extended = extend_vocabulary(module, variables, vocabulary, words)
    module, variables, vocabulary, known = extended
    if jax.process_index() == 0:
        labels = name_classes(options.source, count_classes(module))
        export(
            module, variables, options.to, "hf", labels=labels, vocabulary=vocabulary
        )
    result = {
        "to": options.to,
        "added": len(words) - len(known),
        "vocab_size": module.vocab_size,
        "known_before": known,
    }
    return [json.dumps(result, ensure_ascii=False)]
