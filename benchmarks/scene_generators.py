"""Images that one core generates in a second of its time, for each generator of scenes.

    python benchmarks/scene_generators.py

Time is that of the process, not of the clock; other work on the machine still makes it longer.
"""

import argparse
import statistics
import sys
import time

import report

sys.path.insert(0, str(report.ROOT))

from attn_jax.data import scene_sources

CASES = (  # (data, side in pixels, most objects)
    ("tetrominoes", 35, 3),
    ("multi_dsprites/binarized", 64, 3),
    ("multi_dsprites/colored_on_grayscale", 64, 5),
    ("multi_dsprites/colored_on_colored", 64, 4),
    ("clevr_lite", 64, 6),
    ("clevr_lite", 128, 6),
    ("clevr_lite", 128, 10),
    ("clevr_lite/whole", 128, 10),
)


def measure(data: str, canvas: int, most: int, images: int, start: int) -> float:
    """Images per second of the process, over the images from number `start` on."""
    source = scene_sources.open_generated(
        data, "train", start + images, canvas=canvas, most=most
    )
    began = time.process_time()
    for index in range(start, start + images):
        source[index]
    return images / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    images, rounds = options.images, options.rounds
    for data, canvas, most in CASES:  # warm-up
        measure(data, canvas, most, 3, 0)
    rows = []
    for data, canvas, most in CASES:
        found = [measure(data, canvas, most, images, images * r) for r in range(rounds)]
        spread = f"{min(found):,.0f} - {max(found):,.0f}"
        rows.append(
            f"| {data} | {canvas} x {canvas} | {most} | {statistics.median(found):,.0f} | "
            f"{spread} |"
        )
    report.write(
        "scene_generators",
        [
            "### Generated scenes: images per second of one core",
            "",
            f"`python benchmarks/scene_generators.py --images={images} --rounds={rounds}` "
            f"({report.provenance()})",
            "",
            f"Medians over {rounds} rounds of {images} images each, in seconds of the process; "
            "other work on the machine lowers them. "
            "Worker processes (`config.data_workers`) multiply them by their number of cores.",
            "",
            "| data | pixels | most objects | images/s | rounds |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
