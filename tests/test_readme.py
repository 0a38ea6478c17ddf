"""What the README says of the repository is so."""

import re
from pathlib import Path

from wm_numpy.gradcheck import TOLERANCE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_reading_order_names_every_file_once():
    rows = re.findall(r"^\| \[(\w+\.py)\]\(wm_numpy/\1\) \|", README, re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in (ROOT / "wm_numpy").glob("*.py") if path.stem != "__init__")


def test_pictures_and_commands_exist():
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
    known = re.findall(r'command\("(\w+)"', (ROOT / "run.py").read_text())
    assert set(re.findall(r"python run\.py (\w+)", README)) == set(known)


def test_the_example_of_a_gradient_check_runs(capsys):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "check_pair" in block)
    exec(code, {})
    error, entry = capsys.readouterr().out.split(maxsplit=1)
    assert 0 < float(error) < TOLERANCE and entry.startswith("at x[")
