"""What the README says of the repository is so."""

import re
from pathlib import Path

from wm_numpy.core.gradcheck import TOLERANCE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_reading_order_names_every_file_once():
    order = README[README.index("## Read it in this order") : README.index("## Check a gradient")]
    rows = re.findall(r"\[\w+\.py\]\(wm_numpy/(\w+/\w+\.py)\)", order)
    package = ROOT / "wm_numpy"
    files = [p for p in package.glob("*/*.py") if p.name != "__init__.py"]
    assert sorted(rows) == sorted(str(p.relative_to(package)) for p in files)
    assert "(wm_numpy/paper.py)" in README and "(wm_numpy/plain.py)" in README


def test_pictures_and_commands_exist():
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
    known = re.findall(r"command\((\w+), ", (ROOT / "run.py").read_text())
    assert set(re.findall(r"python run\.py (\w+)", README)) == set(known)


def test_every_link_of_every_page_leads_somewhere():
    pages = [p for p in ROOT.rglob("*.md") if "runs" not in p.parts and ".venv" not in p.parts]
    assert len(pages) > 14
    for page in pages:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
        missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
        assert not missing, f"{page}: {missing}"


def test_the_card_is_one_page():
    assert len((ROOT / "wm_numpy" / "weights" / "README.md").read_text().splitlines()) <= 60


def test_it_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 150


def test_the_example_of_an_agent_runs():
    (code,) = [block for block in EXAMPLES if "Agent.load" in block]
    names = {}
    exec(code, names)
    assert names["features"].shape == (16, 576) and names["reward"].shape == (16,)
    assert names["pictures"].shape == (16, 64, 64, 3)


def test_the_world_of_ones_own_is_the_one_that_the_tests_learn():
    (code,) = [block for block in EXAMPLES if "CATCH" in block]
    example = (ROOT / "tests" / "catch.py").read_text()
    assert code.split() == example.split()


def test_the_example_of_a_gradient_check_runs(capsys):
    (code,) = [block for block in EXAMPLES if "check_pair" in block]
    exec(code, {})
    verdict, error, _, limit, entry = capsys.readouterr().out.split(maxsplit=4)
    assert verdict == "ok," and 0 < float(error) < float(limit) == TOLERANCE
    assert entry.startswith("at x[")
