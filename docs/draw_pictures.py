"""Draws docs/figures/{run,vit,bert,hopfield,slot_attention}.svg.

    python docs/draw_pictures.py

Text stands in boxes that have a color of their own, and lines are gray, so that the pictures
are legible on a light page and on a dark one.
"""

import pathlib
from collections.abc import Sequence

FIGURES = pathlib.Path(__file__).parent / "figures"
GRAY, INK = "#868690", "#1d1d28"
BLUE, GREEN, ORANGE, VIOLET = "#b9d3f5", "#bfe3c3", "#f7d9a8", "#dccbf2"
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Picture:
    """An SVG, drawn from top to bottom; coordinates in pixels."""

    def __init__(self, name: str, title: str, width: int, height: int):
        self.name = name
        self.parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
            f"width='{width}' height='{height}' role='img' {FONT}>",
            f"<title>{title}</title>",
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            f"markerHeight='7' orient='auto'><path d='M0 0L8 4L0 8z' fill='{GRAY}'/>"
            "</marker></defs>",
        ]

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 14,
        color: str = GRAY,
        bold: bool = False,
        anchor: str = "middle",
    ) -> None:
        weight = " font-weight='bold'" if bold else ""
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{color}' "
            f"text-anchor='{anchor}'{weight}>{text}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        title: str,
        lines: Sequence[str] = (),
        color: str = BLUE,
    ) -> None:
        """A box with a bold title and smaller lines, centered."""
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='7' fill='{color}'/>"
        )
        first = y + height / 2 - 9 * len(lines) + 5
        self.text(x + width / 2, first, title, 15, INK, bold=True)
        for i, line in enumerate(lines):
            self.text(x + width / 2, first + 18 * (i + 1), line, 13, INK)

    def frame(
        self, x: float, y: float, width: float, height: float, label: str
    ) -> None:
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='10' "
            f"fill='none' stroke='{GRAY}' stroke-dasharray='5 4'/>"
        )
        self.text(x + 12, y + 19, label, 13, anchor="start")

    def arrow(self, *points: tuple[float, float]) -> None:
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(
            f"<path d='M{path}' fill='none' stroke='{GRAY}' stroke-width='1.8' "
            "marker-end='url(#tip)'/>"
        )

    def square(self, x: float, y: float, side: float, color: str) -> None:
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{side:g}' height='{side:g}' rx='2' "
            f"fill='{color}' stroke='{GRAY}' stroke-width='0.8'/>"
        )

    def save(self) -> None:
        text = "\n".join([*self.parts, "</svg>"]) + "\n"
        (FIGURES / f"{self.name}.svg").write_text(text, encoding="utf-8")


def draw_run() -> Picture:
    p = Picture("run", "How a config becomes a run", 640, 512)
    p.box(10, 10, 190, 78, "recipe", ["configs/vit/digits.py", "+ --config.key=value"])
    p.box(225, 10, 190, 78, "config", ["every key filled in", "and checked"])
    p.box(
        440,
        10,
        190,
        78,
        "run.prepare",
        ["model, task, optimizer,", "devices, evaluations"],
    )
    p.arrow((200, 49), (223, 49))
    p.arrow((415, 49), (438, 49))
    p.arrow((535, 88), (535, 122))

    p.frame(10, 124, 620, 150, "train.py: one loop")
    p.box(30, 156, 170, 70, "batch k", ["chosen by (seed, k)", "alone"], GREEN)
    p.box(235, 156, 170, 70, "step", ["loss, gradient,", "update"], GREEN)
    p.box(440, 156, 170, 70, "state", ["parameters, moments,", "average, key"], GREEN)
    p.arrow((200, 191), (233, 191))
    p.arrow((405, 191), (438, 191))
    p.arrow((505, 226), (505, 250), (320, 250), (320, 228))
    p.text(412, 266, "k + 1", 13)

    p.box(
        10,
        326,
        620,
        70,
        "workdir",
        ["config.json · checkpoints/ · metrics.jsonl · curves.png · assets/"],
        ORANGE,
    )
    p.arrow((560, 274), (560, 324))
    p.text(548, 305, "saves, logs", 13, anchor="end")
    p.arrow((80, 326), (80, 276))
    p.text(92, 305, "the same command resumes", 13, anchor="start")

    for i, (name, what) in enumerate(
        [
            ("evaluate", "metrics"),
            ("predict", "new inputs"),
            ("analyze", "figures"),
            ("export", "other libraries"),
        ]
    ):
        x = 10 + 158 * i
        p.box(x, 440, 146, 58, name, [what], VIOLET)
        p.arrow((x + 73, 396), (x + 73, 438))
    return p


def draw_block(p: Picture, y: float, steps: Sequence[str], label: str) -> None:
    """A Transformer's block as a row of boxes, with its two residual branches."""
    p.frame(10, y, 620, 104, label)
    gap, middle = 18, y + 66
    x = 46.0
    p.arrow((14, middle), (x - 2, middle))
    for i, name in enumerate(steps):
        if i in (0, 3):  # where a branch leaves
            branch = x - gap / 2 - 5
        width = 34 if name == "+" else 100
        if name == "+":  # where the branch comes back
            p.arrow(
                (branch, middle), (branch, y + 32), (x + 17, y + 32), (x + 17, y + 44)
            )
        color = ORANGE if name in ("norm", "+") else GREEN
        p.box(x, y + 46, width, 40, name, [], color)
        x += width + gap
        p.arrow((x - gap, middle), (x - 2, middle))


def draw_vit() -> Picture:
    p = Picture("vit", "Vision Transformer", 640, 378)
    colors = [
        BLUE,
        GREEN,
        ORANGE,
        VIOLET,
        "#f3c3c3",
        "#c9e7ea",
        "#e6e0b0",
        "#cfd2d8",
        "#f0cbe0",
    ]
    for i, color in enumerate(colors):
        p.square(24 + 34 * (i % 3), 12 + 34 * (i // 3), 32, color)
    p.text(74, 132, "image, in patches", 13)
    p.arrow((136, 62), (172, 62))
    p.box(176, 44, 44, 36, "[c]", [], "#ffffff")
    for i, color in enumerate(colors):
        p.square(230 + 43 * i, 44, 36, color)
    p.text(
        400,
        104,
        "a token each: its pixels, projected, + its position; [c] is learned",
        13,
    )
    p.arrow((400, 114), (400, 142))
    draw_block(
        p,
        144,
        ["norm", "attention", "+", "norm", "MLP", "+"],
        "block, repeated: every token attends to all tokens",
    )
    p.arrow((320, 248), (320, 280))
    p.box(
        60,
        282,
        240,
        76,
        "norm, then the [c] token",
        ["or the mean of all tokens,", "or a pooling of your own"],
        BLUE,
    )
    p.box(360, 282, 220, 76, "head", ["logits of the classes"], VIOLET)
    p.arrow((300, 320), (358, 320))
    return p


def draw_bert() -> Picture:
    p = Picture("bert", "BERT", 640, 370)
    words = ["[CLS]", "the", "ship", "[MASK]", "[SEP]", "it", "sank", "[SEP]"]
    for i, word in enumerate(words):
        p.box(10 + 78 * i, 12, 72, 34, word, [], ORANGE if word == "[MASK]" else BLUE)
    p.text(
        320,
        70,
        "each: its piece + its position + its sentence (A or B), then a norm",
        13,
    )
    p.arrow((320, 80), (320, 108))
    draw_block(
        p,
        110,
        ["attention", "+", "norm", "MLP", "+", "norm"],
        "block, repeated: every piece attends to all pieces of its row",
    )
    for x in (95, 320, 545):
        p.arrow((x, 214), (x, 250))
    p.box(
        10,
        252,
        196,
        92,
        "masked words",
        ["which word stood here?", "a probability for each"],
        VIOLET,
    )
    p.box(
        222, 252, 196, 92, "next sentence", ["does B follow A?", "from [CLS]"], VIOLET
    )
    p.box(
        434,
        252,
        196,
        92,
        "or a head for",
        ["classes, tags, spans,", "choices: fine-tuning"],
        VIOLET,
    )
    return p


def draw_hopfield() -> Picture:
    p = Picture("hopfield", "A modern Hopfield network", 640, 300)
    p.box(10, 40, 120, 50, "state", ["a query"], BLUE)
    p.box(10, 180, 120, 60, "stored", ["patterns, a bag"], ORANGE)
    p.box(
        190,
        96,
        150,
        76,
        "similarity",
        ["of the state to each", "pattern, times beta"],
        GREEN,
    )
    p.box(370, 96, 110, 76, "softmax", ["over patterns,", "or sparse"], GREEN)
    p.box(510, 96, 120, 76, "weighted", ["mean of the", "patterns"], GREEN)
    p.arrow((130, 65), (160, 65), (160, 120), (188, 120))
    p.arrow((130, 200), (160, 200), (160, 148), (188, 148))
    p.arrow((340, 134), (368, 134))
    p.arrow((480, 134), (508, 134))
    p.arrow((130, 222), (570, 222), (570, 174))
    p.arrow((570, 96), (570, 30), (70, 30), (70, 38))
    p.text(320, 22, "the new state: once (attention), or until it stops moving", 13)
    p.text(
        320,
        266,
        "no update raises the energy; a pattern that is apart is found in one",
        13,
    )
    p.text(
        320,
        288,
        "HopfieldPooling learns the states, HopfieldLayer the patterns",
        13,
    )
    return p


def draw_slots() -> Picture:
    p = Picture("slot_attention", "Slot Attention", 640, 340)
    scene = ["#dfe2e8"] * 16
    for cells, color in (((0, 1, 4), BLUE), ((6, 7, 11), ORANGE), ((12, 13, 9), GREEN)):
        for cell in cells:
            scene[cell] = color
    for i, color in enumerate(scene):
        p.square(14 + 25 * (i % 4), 30 + 25 * (i // 4), 24, color)
    p.text(64, 150, "image", 13)
    p.box(150, 44, 116, 72, "features", ["a CNN or a ViT,", "+ positions"], BLUE)
    p.arrow((118, 80), (148, 80))
    p.frame(296, 8, 334, 186, "repeated, three times or more")
    p.box(
        310,
        44,
        150,
        72,
        "softmax",
        ["over the slots, which", "compete for features"],
        GREEN,
    )
    p.box(492, 44, 124, 72, "mean", ["of what each", "slot has won"], GREEN)
    p.box(402, 136, 214, 44, "slots: GRU, MLP", [], VIOLET)
    p.arrow((266, 80), (308, 80))
    p.arrow((460, 80), (490, 80))
    p.arrow((554, 116), (554, 134))
    p.arrow((402, 158), (360, 158), (360, 118))
    p.text(352, 150, "queries", 13, anchor="end")
    p.arrow((509, 180), (509, 226))
    p.box(402, 228, 214, 56, "decoder, slot by slot", ["colors and a mask"], BLUE)
    for k, color in enumerate((BLUE, ORANGE, GREEN)):
        for i in range(16):
            own = scene[i] == color
            p.square(
                250 - 98 * k + 20 * (i % 4),
                216 + 20 * (i // 4),
                19,
                color if own else "#f4f4f6",
            )
    p.arrow((402, 256), (338, 256))
    p.text(
        320,
        322,
        "added up they must give the image; or a head reads each slot's properties",
        13,
    )
    return p


def main() -> None:
    for draw in (draw_run, draw_vit, draw_bert, draw_hopfield, draw_slots):
        draw().save()


if __name__ == "__main__":
    main()
