"""Reads a compiled program as text: its collectives and the memory that it touches.

The body of a loop counts as often as the loop runs, where the program says how often;
`Program.unknown_loops` counts the other loops, whose bodies count once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that name or rename bytes and move none.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "partition-id", "replica-id", "after-all"),
    *("optimization-barrier", "custom-call-done"),
}
UPDATE = "dynamic-update-slice"  # in place
PARTIAL = {"slice", "dynamic-slice", "gather"}  # read no more than they make
# Bytes; other types have their bits in the name.
WIDTHS = {"pred": 1, "token": 0, "opaque": 0}
SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
LINE = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
HEAD = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # another memory than HBM


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes
    root: bool = False  # the result of its computation


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction in which devices exchange data.

    Attributes:
        kind: one of `KINDS`. An all-reduce of which each device keeps a part is a
            reduce-scatter.
        bytes: of the whole array on one device: what an all-gather makes, what a reduce-scatter
            reads.
        groups: the devices that exchange with each other, by their number within the slice; []:
            all.
        times: how often a step executes it.
        between_slices: over the data-center network; `bytes` are then those that a device
            sends, and the groups are the slices.
    """

    kind: str
    bytes: int
    groups: Sequence[Sequence[int]]
    times: int
    between_slices: bool = False


class Program:
    """A compiled program.

    Attributes:
        collectives: all of them.
        bytes_touched: that a device reads from and writes to HBM in a step; operands and
            results of all instructions outside of fusions.
        unknown_loops: loops of which the number of iterations is not known.
    """

    def __init__(self, text: str):
        self._computations, self._entry = split_computations(text)
        self.unknown_loops = 0
        self.bytes_touched = 0
        self.collectives: list[Collective] = []
        self._walk(self._entry, 1, fused=False)

    def _walk(self, name: str, times: int, *, fused: bool) -> None:
        instructions = self._computations.get(name, [])
        types = {one.name: one.type for one in instructions}
        for one in instructions:
            self._add_collective(name, one, times)
            if not fused:
                called = find_called(one, "calls") if one.opcode == "fusion" else ""
                inside = self._computations.get(called)
                self.bytes_touched += times * (
                    count_fused(one, types, inside)
                    if inside
                    else count_touched(one, types)
                )
            if one.opcode == "while":
                count = self._count_iterations(one)
                self.unknown_loops += count is None
                self._walk(find_called(one, "body"), times * (count or 1), fused=False)
            elif one.opcode == "fusion":
                self._walk(find_called(one, "calls"), times, fused=True)
            elif one.opcode in ("call", "async-start"):
                key = "to_apply" if one.opcode == "call" else "calls"
                self._walk(find_called(one, key), times, fused=fused)
            elif one.opcode == "conditional":
                for branch in find_branches(one):
                    self._walk(branch, times, fused=fused)

    def _add_collective(self, computation: str, one: Instruction, times: int) -> None:
        kind = one.opcode.removesuffix("-start")
        # What leaves a slice is sent to the host, whose runtime exchanges it.
        if one.opcode == "send" and (found := MEGASCALE.search(one.rest)):
            kind = found[1].lower().replace("_", "-")
            size = count_bytes(split_tuple(one.type)[0])
            self.collectives.append(Collective(kind, size, [], times, True))
        if kind not in KINDS or one.opcode == "send":
            return
        size = count_bytes(one.type)
        parts = [count_bytes(part) for part in split_tuple(one.type)]
        if one.opcode.endswith("-start") and kind != "all-reduce":
            size = parts[1]  # (operands, results, ...)
        groups = read_groups(one.rest)
        if kind == "reduce-scatter":
            size *= len(groups[0]) if groups else 1
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        self.collectives.append(Collective(kind, size, groups, times))

    def _count_iterations(self, loop: Instruction) -> int | None:
        """How often a loop runs: as the compiler noted, or the one bound in its condition."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(noted[1])
        bounds = set(self._find_bounds(find_called(loop, "condition")))
        return bounds.pop() if len(bounds) == 1 else None

    def _find_bounds(self, name: str) -> Iterator[int]:
        for one in self._computations.get(name, []):
            number = re.match(r"(\d+)\)", one.rest)
            if one.opcode == "constant" and one.type.startswith("s32[]") and number:
                yield int(number[1])
            elif one.opcode == "fusion":
                yield from self._find_bounds(find_called(one, "calls"))


def split_computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """({name: instructions}, name of the entry).

    Raises:
        ValueError: the text has no entry.
    """
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = None
    for line in text.splitlines():
        if head := HEAD.match(line):
            current = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif match := LINE.match(line):
            root, name, rest = match.groups()
            end = end_of_type(rest)
            opcode, _, rest_ = rest[end:].strip().partition("(")
            current.append(Instruction(name, rest[:end], opcode, rest_, bool(root)))
    if entry is None:
        raise ValueError("the text has no ENTRY computation; pass compiled.as_text().")
    return found, entry


def end_of_type(text: str) -> int:
    """Where the type ends at the start of a text: a tuple in parentheses, or a word."""
    if not text.startswith("("):
        return text.index(" ")
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"{text[:80]!r} has no closing parenthesis.")


def split_tuple(text: str) -> list[str]:
    """The types in a tuple type; a type that is no tuple is the only one."""
    if not text.startswith("("):
        return [text]
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(text[1:-1], 1):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:-1].strip()]


def count_bytes(text: str, *, only_hbm: bool = False) -> int:
    """Bytes of all arrays in a type, without the padding of its layout."""
    total = 0
    for dtype, dims, layout in SHAPE.findall(text):
        if only_hbm and ON_CHIP.search(layout):
            continue
        bits = re.search(r"\d+", dtype)
        width = WIDTHS.get(dtype, int(bits[0]) / 8 if bits else 0)
        total += math.ceil(
            math.prod(int(dim) for dim in dims.split(",") if dim) * width
        )
    return total


def count_touched(one: Instruction, types: dict[str, str]) -> int:
    """Bytes of HBM that an instruction reads and writes."""
    if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    read = [types[name] for name in list_operands(one) if name in types]
    made, opcode = one.type, one.opcode.removesuffix("-start")
    if opcode != one.opcode and len(parts := split_tuple(made)) > 1:
        # (operands, results, ...), but a copy puts its result first.
        made = parts[0] if opcode == "copy" else parts[1]
    if opcode == UPDATE:
        read, made = read[1:2], read[1]
    elif opcode in PARTIAL and count_bytes(read[0], only_hbm=True):
        return count_bytes(made) + count_bytes(made, only_hbm=True)
    return sum(count_bytes(text, only_hbm=True) for text in [made, *read])


def list_operands(one: Instruction) -> list[str]:
    return NAME.findall(one.rest[: end_of_type(f"({one.rest}") - 1])


def count_fused(
    one: Instruction, types: dict[str, str], inside: Sequence[Instruction]
) -> int:
    """Bytes of HBM that a fusion reads and writes.

    If it only takes slices of an operand, only those are read; if a result is an operand with one
    slice replaced, only that slice is written. A loop over stacked layers does both in each step.
    """
    made = {part.name: part for part in inside}
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for part in inside:
        for position, name in enumerate(list_operands(part)):
            users.setdefault(name, []).append((part, position))

    def follow(name: str) -> Iterator[tuple[Instruction, int]]:
        for part, position in users.get(name, []):
            if part.opcode == "bitcast":
                yield from follow(part.name)
            else:
                yield part, position

    def count_read(parameter: str, whole: int) -> int:
        uses = list(follow(parameter))
        sliced = {*PARTIAL, UPDATE}
        if any(position or part.opcode not in sliced for part, position in uses):
            return whole
        read = [count_bytes(part.type) for part, _ in uses if part.opcode != UPDATE]
        return min(sum(read), whole)

    def count_made(name: str, whole: int) -> int:
        part = made[name]
        while part.opcode == "bitcast":
            part = made[list_operands(part)[0]]
        if part.opcode != UPDATE:
            return whole
        return min(whole, count_bytes(made[list_operands(part)[1]].type))

    numbered = {
        int(part.rest.partition(")")[0]): part.name
        for part in inside
        if part.opcode == "parameter"
    }
    total = 0
    for i, name in enumerate(list_operands(one)):
        whole = count_bytes(types.get(name, ""), only_hbm=True)
        total += count_read(numbered[i], whole) if whole and i in numbered else whole
    [root] = (part for part in inside if part.root)
    results = [(root.name, one.type)]  # may be a tuple as well, as of a reduce
    if root.opcode == "tuple":
        results = list(zip(list_operands(root), split_tuple(one.type), strict=True))
    for result, type in results:
        whole = count_bytes(type, only_hbm=True)
        total += count_made(result, whole) if whole else 0
    return total


def find_called(one: Instruction, key: str) -> str:
    found = re.search(rf"\b{key}=%([\w.\-]+)", one.rest)
    return found[1] if found else ""


def find_branches(one: Instruction) -> list[str]:
    if listed := re.search(r"branch_computations=\{([^}]*)\}", one.rest):
        return NAME.findall(listed[1])
    keys = ("true_computation", "false_computation")
    return [name for key in keys if (name := find_called(one, key))]


def read_groups(text: str) -> list[list[int]]:
    """The groups of an instruction, in the three notations of HLO; [] if there are none."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text)
    listed = pairs or re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
    if listed:
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [[int(number) for number in group.split(",")] for group in groups]
    tiled = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(rf"replica_groups=\[([\d,]+)\]<={tiled}", text):
        shape, dims, order = found.groups()
        return tile(dims, order).reshape(numbers(shape)).tolist()
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text
    )
    if mesh is None:
        return []
    axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
    sizes = [int(size) for _, size in axes]
    devices = np.arange(math.prod(sizes))
    if mesh[2] and (found := re.match(tiled, mesh[2] + ")")):
        devices = tile(*found.groups())
    grid = devices.reshape(sizes)
    chosen = re.findall(r"'(\w+)'", mesh[3])
    inside = [i for i, (name, _) in enumerate(axes) if name in chosen]
    outside = [i for i in range(len(axes)) if i not in inside]
    size = math.prod(sizes[i] for i in inside)
    return grid.transpose([*outside, *inside]).reshape(-1, size).tolist()


def tile(dims: str, order: str | None) -> np.ndarray:
    """0, 1, ... in an array of `dims`, transposed by `order`, flat."""
    grid = np.arange(math.prod(numbers(dims))).reshape(numbers(dims))
    return (grid.transpose(numbers(order)) if order else grid).reshape(-1)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
