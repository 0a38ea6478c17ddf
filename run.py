"""The command line of wm_numpy: `python run.py --help`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from wm_numpy.system import process


def parser() -> argparse.ArgumentParser:
    # Allowed before the command or after it: SUPPRESS keeps the subparser's default from overwriting the global flag.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    text = "threads and processes (default: all cores)"
    common.add_argument("--workers", type=int, metavar="N", help=text)
    text = "a Dask scheduler whose workers play the real episodes: tcp://HOST:8786"
    common.add_argument("--executor", metavar="ADDRESS", help=text)
    about = "World Models (Ha & Schmidhuber 2018) in NumPy."
    main = argparse.ArgumentParser("run.py", description=about, parents=[common])
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Callable, help: str, run: bool = True):
        name = function.__name__
        sub = commands.add_parser(name, help=help, description=help, parents=[common])
        sub.set_defaults(carry_out=function)
        if run:
            sub.add_argument("run", help="a run folder, or the name of shipped weights")
        return sub.add_argument

    file = {"type": Path, "metavar": "FILE"}
    changes = {"action": "extend", "nargs": "+", "default": [], "metavar": "KEY=VALUE"}
    changes["help"] = "change a setting; `settings` lists them"

    add = command(train, "collect, V, encode, M, C, evaluate; resumes what was stopped", run=False)
    add("task", help="doom, carracing, FILE.py:NAME or gym:ID")
    text = "smoke, quick, laptop, paper; also reality (CarRacing) (default: quick)"
    add("--preset", default="quick", help=text)
    add("--out", type=Path, help="the run folder (default: runs/TASK)")
    add("--stage", default="evaluate", help="the last stage to run (default: evaluate)")
    add("--seed", type=int, default=0)
    add("--set", **changes)

    add = command(settings, "every setting for --set, with the paper's value", run=False)
    add("task", nargs="?", default="carracing", help="as for train (default: carracing)")
    add("--preset", help="also show its values, and the reasons (a world of your own: quick)")

    add = command(sweep, "evolve C at several temperatures on one V and M: the paper's table 2")
    add("--tau", default="0.1,0.5,1.0,1.15,1.3", help="comma-separated temperatures")
    add("--seed", type=int, help="of the evolution and its episodes (default: that of RUN)")
    add("--out", type=Path, help="folder of the runs (default: runs/RUN-sweep[-SEED])")
    add("--set", **changes)

    add = command(judge, "M on held-out episodes; the same policies in dream and reality")
    add("--episodes", type=int, default=50)
    add("--tau", default="0.5,1.0,1.15,1.3", help="comma-separated temperatures")

    add = command(evaluate, "play real episodes on held-out seeds")
    add("--episodes", type=int, default=100)
    add("--random", action="store_true", help="play the random policy instead")
    add("--unadapted", action="store_true", help="the agent before it was adapted to reality")
    add("--seed", type=int, default=0)
    add("--json", **file, help="write the score there, too")

    add = command(play, "play in M's dream or reality, in a browser; or watch C play", run=False)
    add("run", nargs="?", default="doom", help="a run folder or shipped weights (default: doom)")
    add("--port", type=int, default=0, help="of the page (default: any free one)")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines visit")
    add("--png", **file, help="write a moving picture (APNG) instead")
    add("--tau", type=float, help="temperature of the dream (default: that of C's evolution)")
    add("--seed", type=int, help="of the first dream (default: a new one at each visit)")

    add = command(export, "write a run's weights in float16, to keep, ship or share")
    add("folder", type=Path, help="where to write; every command takes it as RUN")

    add = command(report, "the scores of a run, and its pictures in one HTML file")
    text = "also play real episodes, minutes of them: can its dream be trusted?"
    add("--all", action="store_true", help=text)
    text = "real episodes of each policy, with --all (default: 24)"
    add("--episodes", type=int, default=24, help=text)

    command(gradcheck, "check every hand-written gradient", run=False)

    add = command(bench, "time the hot paths beside PyTorch, pycma and Gymnasium", run=False)
    add("--json", **file)
    add("--only", type=lambda names: names.split(","), metavar="NAME,...")
    add("--scaling", action="store_true", help="how the cost grows with each size")
    return main


def main(argv: list[str] | None = None) -> int:
    """Run a command -> exit code: 0 done, 1 failed, 2 usage."""
    args = parser().parse_args(argv, argparse.Namespace(debug=False, workers=None, executor=None))
    if argv is None:  # a process of its own
        process.open_streams()
        process.stop_on_signals(quiet=args.command == "play")  # it has no other end
    try:
        code = perform(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        resumes = "; the same command resumes" if args.command in ("train", "sweep") else ""
        print(f"\nstopped{resumes}", file=sys.stderr)
        return 1
    except Exception as error:
        if args.debug:
            raise
        text = str(error).strip() or type(error).__name__
        required = ("numpy", "gymnasium", "vizdoom", "Box2D", "pygame")
        if isinstance(error, ModuleNotFoundError) and error.name in required:
            text = f"{text}: run `pip install -r requirements.txt`"
        elif not type(error).__module__.startswith("wm_numpy"):
            text = f"{type(error).__name__}: {text} (--debug shows where)"
        print(f"run.py: {text}", file=sys.stderr)
        return 2 if type(error).__name__ in ("SettingError", "TaskError") else 1


def perform(args: argparse.Namespace) -> int | None:
    """Carry out a command -> exit code. `settings` and `gradcheck` need only NumPy."""
    from wm_numpy.settings import config
    from wm_numpy.system import threads
    from wm_numpy.training import parallel

    for name, least in (("workers", 1), ("seed", 0), ("episodes", 2)):
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise config.SettingError(f"--{name} {value}: at least {least}")
    if args.workers is not None:
        threads.set_workers(args.workers)
    if args.executor is not None:
        parallel.use_cluster(args.executor)
    if getattr(args, "tau", None) is not None:
        changes = [config.pairs([f"evolve.tau={tau}"]) for tau in str(args.tau).split(",")]
        args.taus = [config.from_flat(change).evolve.tau for change in changes]
    if hasattr(args, "run"):
        tell_whose(args.run)
    return args.carry_out(args)


def tell_whose(run: str) -> None:
    """Say so where a name of shipped weights is also that of the reader's own run."""
    from wm_numpy.models import agent

    own = Path("runs") / run / "config.json"
    if own.exists() and agent.run_folder(run).parent == agent.SHIPPED:
        shipped = f"{run}: the weights that come with the package"
        print(f"{shipped}; your own run is {own.parent}", flush=True)


def train(args: argparse.Namespace) -> None:
    from wm_numpy.envs import unknown
    from wm_numpy.lab import lecture, report
    from wm_numpy.settings import config, tasks
    from wm_numpy.training import experiment

    stages = experiment.STAGES
    if args.stage not in stages:
        fault = f"unknown stage {args.stage!r}"
        raise config.SettingError(f"{fault}: choose from {', '.join(stages)}")
    settings = config.resolve(args.task, args.preset, args.set, args.seed)
    task = tasks.find(settings.task)
    run = experiment.Experiment(settings, args.out or Path("runs") / task.folder)
    print(report.plan(settings, run.folder, run.disk_needed()), flush=True)
    if not run.episodes.exists():
        for line in unknown.examined(task):
            print(line, flush=True)
    run.run(stages[: stages.index(args.stage) + 1])
    if args.stage == "evaluate":
        print(report.table(run.folder))
        lecture.write_page(run.folder, run.folder)
        print(f"pictures: {run.folder / 'report.html'}")


def settings(args: argparse.Namespace) -> None:
    from wm_numpy.settings import config

    print(config.help_text(args.task, args.preset))


def sweep(args: argparse.Namespace) -> None:
    from wm_numpy.lab import report
    from wm_numpy.settings import config
    from wm_numpy.training import experiment

    changes = {"ahead.horizon": 0} | config.pairs(args.set)  # table 2 is of C alone
    name = f"{Path(args.run).name}-sweep"
    if args.seed is not None:
        changes["seed"] = args.seed
        name += f"-{args.seed}"
    out = args.out or Path("runs") / name
    folders = {tau: out / f"tau-{tau!r}".removesuffix(".0") for tau in args.taus}
    for tau, folder in folders.items():
        run = experiment.branch(args.run, folder, changes | {"evolve.tau": tau})
        print(f"tau {tau:g} -> {folder}", flush=True)
        run.run(("mdnrnn", "evolve", "evaluate"))
    print(report.sweep_table(folders))


def judge(args: argparse.Namespace) -> None:
    from wm_numpy.lab import judge
    from wm_numpy.models import agent

    judge.judge(agent.Agent.load(args.run), args.episodes, args.taus)


def evaluate(args: argparse.Namespace) -> None:
    from wm_numpy.lab import report
    from wm_numpy.models import agent
    from wm_numpy.system import files
    from wm_numpy.training import episodes, log

    loaded = agent.Agent.load(args.run, adapted=not args.unadapted)
    name, player = ("random policy", None) if args.random else ("agent", loaded)
    task = loaded.config.task
    result = episodes.evaluate(task, player, args.episodes, args.seed, log.Log())
    print(report.score_line(name, result))
    if "alone" in result:
        print(report.score_line("C alone", result["alone"]))
        print(report.gain(result))
    if args.json:
        files.write(args.json, result)


def play(args: argparse.Namespace) -> None:
    from wm_numpy.demo import play
    from wm_numpy.lab import film
    from wm_numpy.models import agent
    from wm_numpy.system import files

    if not args.png:
        play.serve(args.run, args.host, args.port, seed=args.seed, tau=args.tau)
        return
    player = agent.Agent.load(args.run)
    moments = film.film(player, args.seed or 0, args.tau)
    files.write(args.png, film.animated(player, moments))
    print(f"{args.png}: a moving picture of {', '.join(moments[0])}")


def export(args: argparse.Namespace) -> None:
    from wm_numpy.training import runfolder

    runfolder.export(args.run, args.folder)


def report(args: argparse.Namespace) -> None:
    from wm_numpy.lab import lecture, report
    from wm_numpy.models import agent

    folder = agent.run_folder(args.run)
    out = Path(args.run)
    if out != folder:  # nothing is written into the package
        out = Path("runs") / f"{folder.name}-report"
    print(report.table(folder))
    lecture.write_page(folder, out, args.episodes if args.all else 0)
    print(f"pictures: {out / 'report.html'}")


def gradcheck(args: argparse.Namespace) -> int:
    from wm_numpy.lab import cases

    return cases.main()


def bench(args: argparse.Namespace) -> None:
    from tests import bench

    bench.main(args.json, args.scaling, args.only)


if __name__ == "__main__":
    sys.exit(main())
