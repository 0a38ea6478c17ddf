"""The command line: exit codes, errors of one sentence, and the files that it writes."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import run
from tests.conftest import ROOT, TINY
from wm_numpy.lab import film, report
from wm_numpy.models import agent as agents
from wm_numpy.models.agent import Agent
from wm_numpy.system import files
from wm_numpy.training import experiment, parallel

INSTALL = "run `pip install -r requirements.txt`"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, workers):
    """In a folder of its own, which nothing may litter; --workers is undone by `workers`."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sentence(capsys):
    """Runs a command that fails -> its one sentence."""

    def sentence(*argv, code: int) -> str:
        capsys.readouterr()
        try:
            got = run.main([str(a) for a in argv])
        except SystemExit as error:  # argparse's
            assert error.code == code == 2
            return capsys.readouterr().err.splitlines()[-1]
        err = capsys.readouterr().err
        assert got == code, err
        assert err.startswith("run.py: ") and err.count("\n") == 1 and "Traceback" not in err
        return err

    return sentence


# --------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "argv, named",
    [
        (["train", "chess"], "unknown task 'chess'"),
        (["train", "doom", "--preset", "huge"], "unknown preset 'huge'"),
        (
            ["train", "doom", "--set", "evolve.tua=1"],
            "unknown setting 'evolve.tua': did you mean evolve.tau?",
        ),
        (["train", "doom", "--set", "tau=1"], "did you mean evolve.tau?"),
        (["train", "doom", "--set", "batch=1"], "did you mean vae.batch or mdnrnn.batch?"),
        (
            ["train", "doom", "--set", "x.y=1"],
            "unknown setting 'x.y': `python run.py settings` lists them all",
        ),
        (["train", "doom", "--set", "evolve.tau=hot"], "evolve.tau takes float"),
        (["train", "doom", "--set", "evolve.tau"], "KEY=VALUE"),
        (["train", "doom", "--seed", "-1"], "--seed -1: at least 0"),
        (["train", "doom", "--stage", "fly"], "unknown stage 'fly'"),
        (["train", "doom", "--workers", "0"], "--workers"),
        (["--workers", "-2", "train", "doom"], "--workers"),
        (["train", "doom", "--workers", "many"], "--workers"),
        (["train"], "task"),
        (["fly"], "fly"),
        ([], "COMMAND"),
    ],
)
def test_usage(sentence, argv, named, tmp_path):
    assert named in sentence(*argv, code=2)
    assert not list(tmp_path.iterdir())  # no run folder is begun


@pytest.mark.parametrize(
    "argv, named",
    [
        (["evaluate", "RUN", "--episodes", "1"], "--episodes"),
        (["evaluate", "RUN", "--seed", "-1"], "--seed"),
        (["evaluate", "RUN", "--workers", "0"], "--workers"),
        (["report", "RUN", "--workers", "0"], "--workers"),
        (["play", "RUN", "--png", "x.png", "--workers", "0"], "--workers"),
        (["sweep", "RUN", "--tau", "1.0,cold"], "evolve.tau takes float"),
        (["sweep", "RUN", "--set", "evolve.tua=1"], "evolve.tua"),
        (["judge", "RUN", "--tau", "0"], "evolve.tau"),
        (["report", "RUN", "--all", "--episodes", "1"], "--episodes"),
        (["play", "RUN", "--png", "x.png", "--tau", "0"], "tau"),
        (["play", "RUN", "--png", "x.png", "--tau", "nan"], "tau"),
        (["play", "RUN", "--png", "x.png", "--seed", "-1"], "seed"),
        (["play", "RUN", "--seed", "-1"], "seed"),
        (["play", "RUN", "--port", "http"], "--port"),
    ],
)
def test_usage_with_a_run(sentence, doom_run, copy_of, argv, named):
    folder = copy_of(doom_run)
    assert named in sentence(*(folder if a == "RUN" else a for a in argv), code=2)


@pytest.mark.parametrize("command", ["evaluate", "play", "report", "sweep", "judge"])
def test_a_run_that_does_not_exist(sentence, command, tmp_path):
    assert "nowhere is not a run folder" in sentence(command, "nowhere", code=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "missing, command, code, said",
    [
        ("gymnasium pygame vizdoom Box2D", "settings", 0, "evolve.tau"),
        ("gymnasium pygame vizdoom Box2D", "evaluate doom", 1, INSTALL),
        ("numpy", "settings", 1, INSTALL),
        ("pygame vizdoom Box2D", "evaluate nowhere", 1, "nowhere is not a run folder"),
        ("vizdoom", "train doom --preset smoke", 1, "run `pip install vizdoom`"),
    ],
)
def test_without_packages(missing, command, code, said):
    """In a process of its own, where importing them fails."""
    hidden = dict.fromkeys(missing.split())
    hide = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules.update({hidden!r})"
    program = f"{hide}; import run; sys.exit(run.main({command.split()!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_settings(capsys):
    assert run.main(["settings"]) == 0
    out = capsys.readouterr().out
    assert "  evolve.tau                    1.0       temperature of the dream" in out
    assert run.main(["settings", "doom", "--preset", "quick"]) == 0
    assert (
        "  evolve.tau                    1.15      1.0       temperature" in capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as error:
        run.main(["--help"])
    out = capsys.readouterr().out
    commands = "train evaluate play sweep judge export report gradcheck bench settings"
    assert error.value.code == 0 and all(f"\n    {command} " in out for command in commands.split())


def test_several_settings():
    argv = "train doom --set rounds=2 evolve.tau=1 --seed 1 --set repeat=3"
    assert run.parser().parse_args(argv.split()).set == ["rounds=2", "evolve.tau=1", "repeat=3"]


def test_debug_shows_where():
    with pytest.raises(files.DataError):
        run.main(["evaluate", "nowhere", "--debug"])
    with pytest.raises(files.DataError):
        run.main(["--debug", "evaluate", "nowhere"])


@pytest.mark.parametrize(
    "command", ["train doom", "sweep doom", "evaluate doom", "judge doom", "gradcheck", "settings"]
)
def test_interrupt(monkeypatch, capsys, command):
    """Only what resumes is said to resume."""

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "perform", stop)
    assert run.main(command.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("\nstopped")
    assert ("the same command resumes" in said) == (command in ("train doom", "sweep doom"))


# --------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", ["vae.npz", "mdnrnn.npz", "controller.npz"])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "missing", "nan"])
def test_damaged_weights(sentence, doom_run, copy_of, name, damage):
    path = copy_of(doom_run) / name
    raw = path.read_bytes()
    if damage == "foreign":
        files.write(path, {"x": np.zeros(3)})
    elif damage == "nan":
        arrays = files.read_arrays(path)
        arrays["theta" if name.startswith("c") else "weights"][3] = np.nan
        files.write(path, arrays)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"")
    assert name in sentence("play", path.parent, "--png", "x.png", code=1)


def test_starts_that_are_missing(sentence, doom_run, copy_of):
    path = copy_of(doom_run) / "mdnrnn.npz"
    arrays = files.read_arrays(path)
    files.write(path, {k: a for k, a in arrays.items() if k != "initial_latents"})
    assert "mdnrnn.npz" in sentence("play", path.parent, "--png", "x.png", code=1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"vae.size": 3}', '{"rounds": null}', '{"evolve.tau": NaN}']
)
def test_damaged_config(sentence, doom_run, copy_of, text):
    folder = copy_of(doom_run)
    (folder / "config.json").write_text(text)
    assert "config.json is damaged" in sentence("play", folder, "--png", "x.png", code=1)
    assert "config.json is damaged" in sentence(*train(folder), code=1)
    assert (folder / "config.json").read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"random": 1, "agent": 2}'])
def test_damaged_results(sentence, doom_run, copy_of, text, monkeypatch):
    folder = copy_of(doom_run)
    (folder / "results.json").write_text(text)
    monkeypatch.setattr("wm_numpy.lab.lecture.write_page", lambda *a: None)  # pictures take seconds
    assert "results.json is damaged" in sentence("report", folder, code=1)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_results_when_training_goes_on(sentence, doom_run, copy_of, text):
    folder = copy_of(doom_run)
    (folder / "results.json").write_text(text)
    assert "results.json" in sentence(*train(folder), code=1)


@pytest.mark.parametrize("name", ["vae.npz", "mdnrnn.npz", "controller.npz"])
@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_damaged_weights_when_training_goes_on(sentence, doom_run, copy_of, name, damage):
    path = copy_of(doom_run) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        files.write(path, {"x": np.zeros(3)})
    assert name in sentence(*train(path.parent), code=1)


def test_damaged_episode_when_training_goes_on(sentence, doom_run, copy_of):
    folder = copy_of(doom_run)
    (folder / "vae.npz").unlink()
    (folder / "episodes" / "000001.npy").write_bytes(b"hello")
    assert "000001.npy is damaged" in sentence(*train(folder), code=1)


def train(folder, *more) -> list:
    settings = [part for s in TINY for part in ("--set", s)]
    return ["train", "doom", "--preset", "smoke", "--out", folder, *settings, *more]


# ------------------------------------------------------------------------------------------------- folders


def test_another_configuration(sentence, doom_run, copy_of):
    folder = copy_of(doom_run)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert "evolve.tau is 1.15 there and 1.3 here" in sentence(
        *train(folder, "--set", "evolve.tau=1.3"), code=1
    )
    assert "seed is 0 there and 1 here" in sentence(*train(folder, "--seed", "1"), code=1)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_foreign_folder(sentence, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not empty and not a run folder" in sentence(*train(tmp_path), code=1)
    assert "thesis.txt" in sentence(*train(tmp_path / "thesis.txt"), code=1)


HOLD = "import sys, time; from pathlib import Path; from wm_numpy.system.files import locked\n\
with locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)"


def test_two_runs_in_one_folder(sentence, doom_run, copy_of, monkeypatch):
    """The second says who is at work, until that one is dead, however it died."""
    monkeypatch.setattr("wm_numpy.lab.lecture.write_page", lambda *a: None)
    folder = copy_of(doom_run)
    first = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE)
    first.stdout.readline()
    said = sentence(*train(folder), code=1)
    assert f"process {first.pid} on " in said and f"is at work in {folder}" in said
    said = sentence(*train(folder, "--set", "rounds=2"), code=1)
    assert f"process {first.pid} on " in said
    assert json.loads((folder / "config.json").read_text())["rounds"] == 1
    first.kill()
    first.communicate()
    assert run.main([str(a) for a in train(folder)]) == 0


def test_an_address_of_a_cluster(doom_run, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(parallel, "use_cluster", asked.append)
    monkeypatch.setattr("wm_numpy.lab.lecture.write_page", lambda *a: None)
    assert run.main(["report", str(doom_run), "--executor", "tcp://there:8786"]) == 0
    assert asked == ["tcp://there:8786"]


def test_no_disk(sentence, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**7))
    assert "GB are free" in sentence(*train(tmp_path / "run"), code=1)


# ------------------------------------------------------------------------------------------------- results


def test_a_finished_run_prints_its_table(doom_run, copy_of, capsys):
    assert run.main([str(a) for a in train(copy_of(doom_run))]) == 0
    out = capsys.readouterr().out
    results = json.loads((doom_run / "results.json").read_text())
    for who, name in [("random", "random policy"), ("agent", "agent")]:
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert f"{results[who]['mean']:.1f}" in line and f"{results[who]['sd']:.1f}" in line
    assert (
        "weights: V 4,446,915, M " in out
        and "V 3 updates; M 6 updates; C 3 gen" in out
        and "95 %" in out
    )
    (dream,) = [line for line in out.splitlines() if line.startswith("its own dream ")]
    assert f"{results['dream']['mean']:.1f}" in dream
    assert "its own dream: at most 20 steps at temperature 1.15, in frames survived" in out
    folder = Path(out.split("pictures: ")[1].splitlines()[0]).parent
    assert f"python run.py play {folder} " in out
    assert "32 nats, which are free" in out and "evaluation: 2 real episodes" in out
    assert "changed: " in out and " vae.updates=3 " in out and "expect" not in out


def test_a_finished_run_without_pygame(doom_run, copy_of):
    """Its pictures need NumPy alone."""
    argv = [str(a) for a in train(copy_of(doom_run))]
    hide = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['pygame'] = None"
    program = f"{hide}; import run; sys.exit(run.main({argv!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout and "next:" in done.stdout


def test_shipped_weights_are_not_taken_for_a_run(doom_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wm_numpy.lab.lecture.write_page", lambda *a: None)
    assert run.main(["report", "doom"]) == 0 and "your own run" not in capsys.readouterr().out
    (tmp_path / "runs" / "doom").mkdir(parents=True)
    shutil.copy(doom_run / "config.json", tmp_path / "runs" / "doom")
    assert run.main(["report", "doom"]) == 0
    out = capsys.readouterr().out
    assert "doom: the weights that come with the package; your own run is runs/doom" in out


def test_evaluate_reproduces_the_score_of_the_run(doom_run, tmp_path, capsys):
    """The same seed and number of episodes: the very same score, on one worker."""
    file = tmp_path / "deep" / "score.json"
    argv = ["evaluate", doom_run, "--episodes", 2, "--json", file, "--workers", 1]
    assert run.main([str(a) for a in argv]) == 0
    score = json.loads(file.read_text())
    stored = json.loads((doom_run / "results.json").read_text())["agent"]
    assert {"mean", "sd", "ci95", "episodes"} <= score.keys()
    assert score["episodes"] == 2 and score["mean"] == stored["mean"]
    assert score["sd"] == stored["sd"]
    assert score["ci95"] == pytest.approx(
        [score["mean"] + s * 1.96 * score["sd"] / 2**0.5 for s in (-1, 1)]
    )
    assert f"{score['mean']:.1f}" in capsys.readouterr().out


def test_sweep_evolves_another_c_on_the_same_v_and_m(doom_run, tmp_path, capsys):
    """And with a seed of its own, where one evolution is too few."""
    argv = ["sweep", str(doom_run), "--tau", "0.5", "--seed", "5"]
    assert run.main(argv) == 0
    folder = tmp_path / "runs" / f"{doom_run.name}-sweep-5" / "tau-0.5"
    result = json.loads((folder / "results.json").read_text())["agent"]
    assert agents.load_config(folder).seed == result["seed"] == 5
    for name in ("vae.npz", "mdnrnn.npz"):
        mine, theirs = files.read_arrays(folder / name), files.read_arrays(doom_run / name)
        assert np.array_equal(mine["weights"], theirs["weights"])
    assert json.loads((folder / "config.json").read_text())["evolve.tau"] == 0.5
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.strip().startswith("0.50")]
    assert f"{result['mean']:.0f} +-" in row
    assert "2060 +- 277" in row and "196 +- 50" in row  # the paper's


def test_every_temperature_of_a_sweep_has_a_folder_of_its_own(doom_run, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment.Experiment, "run", lambda self, stages: None)
    monkeypatch.setattr(report, "sweep_table", lambda folders: "")
    assert run.main(["sweep", str(doom_run), "--tau", "1,1.0000001,1.15", "--out", "sweep"]) == 0
    assert sorted(os.listdir(tmp_path / "sweep")) == ["tau-1", "tau-1.0000001", "tau-1.15"]


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("task", ["doom", "car"])
def test_a_film_as_a_moving_picture(task, request, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "SECONDS", 0.5)
    folder = request.getfixturevalue(f"{task}_run")
    assert run.main(["play", str(folder), "--png", "deep/film.png", "--tau", "0.5"]) == 0
    assert (tmp_path / "deep" / "film.png").read_bytes()[16:24] == struct.pack(">II", 584, 192)
    assert os.listdir(tmp_path) == ["deep"]


def test_sweep_with_another_m(doom_run, tmp_path, sentence):
    """At learning rate 0 an untrained one, on the series of the run; shipped weights have none."""
    settings = "--set mdnrnn.learning_rate=0 --set mdnrnn.final_rate=0 --set mdnrnn.updates=1"
    settings = settings.split()
    argv = ["sweep", str(doom_run), "--tau", "0.5", *settings, "--out", str(tmp_path / "sweep")]
    assert run.main(argv) == 0
    folder = tmp_path / "sweep" / "tau-0.5"
    assert (folder / "vae.npz").read_bytes() == (doom_run / "vae.npz").read_bytes()
    untrained, trained = (np.load(f / "mdnrnn.npz") for f in (folder, doom_run))
    assert np.array_equal(untrained["initial_latents"], trained["initial_latents"])
    m = agents.new_mdnrnn(agents.load_config(folder), np.random.default_rng((0, 1, 3)))
    fresh = m.params.flat
    assert np.array_equal(untrained["weights"], fresh)
    assert not np.array_equal(fresh, trained["weights"])
    assert "no series" in sentence("sweep", "doom", *argv[2:-1], tmp_path / "other", code=1)


def test_report(doom_run, copy_of, capsys, monkeypatch):
    monkeypatch.setattr(film, "SECONDS", 0.5)
    folder = copy_of(doom_run)
    before = {p.name for p in folder.iterdir()}
    assert run.main(["report", str(folder)]) == 0
    assert "random policy" in capsys.readouterr().out
    assert {p.name for p in folder.iterdir()} - before == {"report.html", "curves.svg"}


def test_report_of_shipped_weights(monkeypatch, tmp_path):
    """Its pictures do not stand in the way of a run, nor in the package."""
    made = []
    monkeypatch.setattr("wm_numpy.lab.lecture.write_page", lambda *a: made.append(a[1:]))
    assert run.main(["report", "doom"]) == 0 and run.main(["report", "doom", "--all"]) == 0
    assert made == [(Path("runs/doom-report"), 0), (Path("runs/doom-report"), 24)]


def test_report_of_a_run_that_is_not_finished(sentence, car_run, monkeypatch):
    monkeypatch.setattr("wm_numpy.lab.lecture.write_page", lambda *a: None)
    assert "results.json is missing" in sentence("report", car_run, code=1)


def test_the_demo_prints_its_address_and_ends_at_once(tmp_path):
    """Without a display: it opens no browser, serves, and Ctrl-C is a good end."""
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    argv = [sys.executable, ROOT / "run.py", "play", "--seed", "7"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path
    ) as demo:
        address = demo.stdout.readline().split()[1]
        assert address.startswith("http://127.0.0.1:") and address.endswith("/?seed=7")
        with urlopen(address) as answer:
            assert b"<!doctype html>" in answer.read()
        demo.send_signal(signal.SIGINT)
        try:
            assert demo.wait(20) == 0 and demo.stderr.read() == ""
        finally:
            demo.kill()  # where SIGINT is ignored, as under nohup: a failure, and no waiting for ever
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- shipped weights


def test_export_keeps_the_agent(sentence, doom_run, tmp_path):
    assert run.main(["export", str(doom_run), str(tmp_path / "half")]) == 0
    agent, half = Agent.load(doom_run), Agent.load(tmp_path / "half")
    for full, rounded in ((agent.v, half.v), (agent.m, half.m)):
        full, rounded = full.params.flat, rounded.params.flat
        np.testing.assert_allclose(rounded, full, rtol=2**-11, atol=2**-24)
    np.testing.assert_allclose(half.theta, agent.theta, rtol=2**-11, atol=2**-24)
    assert half.config == agent.config
    longest = max(doom_run.glob("series/*/*.npy"), key=lambda path: path.stat().st_size)
    assert (tmp_path / "half" / "recorded" / "000000.npy").read_bytes() == longest.read_bytes()
    assert "is not empty" in sentence("export", doom_run, tmp_path / "half", code=1)


def test_an_export_that_fails_leaves_nothing(sentence, doom_run, copy_of, tmp_path, monkeypatch):
    """It names the file that is to blame, and may be repeated."""
    folder = copy_of(doom_run)
    path = max(folder.glob("series/*/*.npy"))
    raw = path.read_bytes()
    path.write_bytes(raw[:-9])
    assert f"{path.name} is damaged" in sentence("export", folder, tmp_path / "half", code=1)
    path.write_bytes(raw)
    write = files.write
    with monkeypatch.context() as patch:
        patch.setattr(
            agents, "write", lambda path, x: write(path, x if path.name[0] == "v" else 1j)
        )
        sentence("export", folder, tmp_path / "half", code=1)
    assert not list((tmp_path / "half").iterdir())
    assert run.main(["export", str(folder), str(tmp_path / "half")]) == 0
    assert {path.name for path in (tmp_path / "half").iterdir()} == {
        *("vae.npz", "mdnrnn.npz", "controller.npz", "recorded", "config.json")
    }


def test_the_weights_that_come_with_the_package(capsys, tmp_path):
    agent = Agent.load("doom")
    assert agent.v.params.size == 4_446_915
    assert agent.m.params.size == 576_705 and agent.theta.size == 576
    assert agent.config.ahead.horizon == 16
    car = Agent.load("carracing")  # its M has heads for reward and value
    assert car.v.params.size == 4_348_547
    assert car.m.params.size == 422_368 + 2 * 257 and car.theta.size == 867
    assert sum(f.stat().st_size for f in agents.SHIPPED.rglob("*")) < 24e6  # two agents
    file = tmp_path / "score.json"
    assert run.main(["evaluate", "doom", "--episodes", "2", "--json", str(file)]) == 0
    assert {"mean", "sd", "ci95", "episodes"} <= json.loads(file.read_text()).keys()
