"""Draws the rooms of this project and what they import, into docs/architecture.md.

    python docs/draw_imports.py            # rewrites the picture
    python docs/draw_imports.py --check    # fails where it is out of date

A room is a file of attn_jax/, or a folder below it. It may import rooms of lower levels only;
rooms of one level do not know each other. tests/test_imports.py runs the check.
"""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports -->\n```text\n", "```\n<!-- end imports -->"


def room_of(name: str) -> str | None:
    """The room of a module such as "attn_jax.data.text"; None: not ours."""
    parts = name.split(".")
    if parts[0] == "train":
        return "train.py"
    if parts[0] != "attn_jax":
        return None
    if len(parts) == 1:
        return "__init__"
    folder = (ROOT / "attn_jax" / parts[1]).is_dir()
    return f"{parts[1]}/" if folder else parts[1]


def imported_modules(path: pathlib.Path) -> set[str]:
    """Modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                below = ROOT / node.module.replace(".", "/") / alias.name
                is_module = below.is_dir() or below.with_suffix(".py").exists()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def read_imports() -> dict[str, set[str]]:
    """{room: the rooms that it imports}."""
    rooms: dict[str, set[str]] = {}
    for path in [ROOT / "train.py", *sorted((ROOT / "attn_jax").rglob("*.py"))]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        room = room_of(module.removesuffix(".__init__"))
        assert room is not None
        found = {room_of(name) for name in imported_modules(path)} - {None, room}
        rooms.setdefault(room, set()).update(name for name in found if name)
    return rooms


def levels_of(rooms: dict[str, set[str]]) -> dict[str, int]:
    """The length of the longest chain of imports below each room."""
    levels: dict[str, int] = {}

    def level(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            sys.exit(f"error: a cycle of imports: {' -> '.join((*above, room))}")
        if room not in levels:
            below = [level(other, (*above, room)) for other in rooms[room]]
            levels[room] = 1 + max(below, default=-1)
        return levels[room]

    for room in rooms:
        level(room)
    return levels


def draw() -> str:
    rooms = read_imports()
    levels = levels_of(rooms)
    width = max(map(len, rooms)) + 2
    lines = []
    for level in sorted(set(levels.values()), reverse=True):
        for room in sorted(name for name in rooms if levels[name] == level):
            below = sorted(rooms[room], key=lambda name: (-levels[name], name))
            text = (
                f"{level:2}  {room:{width}}{'-> ' if below else ''}{'  '.join(below)}"
            )
            lines.append(text.rstrip() + "\n")
    return "".join(lines)


def main() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    current = before + BEGIN + draw() + END + after
    if "--check" not in sys.argv:
        PAGE.write_text(current)
    elif current != page:
        sys.exit(
            "error: the picture in docs/architecture.md is out of date; run python "
            "docs/draw_imports.py"
        )


if __name__ == "__main__":
    main()
