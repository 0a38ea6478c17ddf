"""Rooms and what they import: one way only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wm_numpy"
# Each imports those before it; settings imports none.
ROOMS = ["system", "core", "settings", "models", "worlds", "envs", "training", "lab", "demo"]
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("*/*.py"))


def imported(path: Path) -> set[str]:
    """The rooms that a file names in its imports, those inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            rooms |= (
                {node.module.partition(".")[0]} if node.module else {a.name for a in node.names}
            )
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            rooms |= {name.split(".")[1] for name in names if name and name.startswith("wm_numpy.")}
    return rooms


def test_every_room_is_known():
    assert {Path(name).parts[0] for name in FILES} == set(ROOMS)


@pytest.mark.parametrize("name", FILES)
def test_a_room_imports_only_rooms_above_it(name):
    room = Path(name).parts[0]
    above = ROOMS[: ROOMS.index(room)]
    if room == "settings":
        above = []
    assert imported(PACKAGE / name) <= set(above)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_lives_there(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert text and "import" in text
