"""The command line of wm_numpy: `python run.py --help`."""

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="run.py", description="World Models (Ha & Schmidhuber 2018) in NumPy.")
    main.add_argument("--debug", action="store_true", help="show the traceback of an error")
    main.add_argument("--workers", type=int, default=None, metavar="N", help="threads and processes; all cores")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, run: bool = True, **kwargs) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, **kwargs)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.add_argument("--workers", type=int, default=argparse.SUPPRESS, help="threads and processes; all cores")
        if run:
            sub.add_argument("run", help="a run folder, or the name of weights that come with the package")
        return sub

    train = command("train", "collect, V, encode, M, C, evaluate; goes on where it was stopped", run=False)
    train.add_argument("task", help="doom or carracing")
    train.add_argument("--preset", default="quick", help="smoke, quick, laptop or paper; quick")
    train.add_argument("--out", type=Path, help="the run folder; runs/TASK")
    train.add_argument("--stage", help="stop after this stage: collect, vae, encode, mdnrnn, evolve or evaluate")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; see `settings`"
    )
    train.add_argument("--seed", type=int, default=0)

    command("settings", "every setting of `train --set`, with the paper's CarRacing value", run=False)

    sweep = command("sweep", "evolve C at several temperatures on one V and M: table 2 of the paper")
    sweep.add_argument("--tau", default="0.1,0.5,1.0,1.15,1.3", help="temperatures, with commas between")
    sweep.add_argument("--out", type=Path, help="where the runs go; runs/RUN-sweep")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all")

    judge = command("judge", "M on held-out episodes; the same policies in the dream and in reality")
    judge.add_argument("--episodes", type=int, default=50)
    judge.add_argument("--tau", default="0.5,1.0,1.15,1.3", help="temperatures, with commas between")

    evaluate = command("evaluate", "play real episodes on seeds used for nothing else")
    evaluate.add_argument("--episodes", type=int, default=100)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--random", action="store_true", help="the random policy instead of the agent")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the score there too")

    watch = command("watch", "the agent in the real environment, in a window")
    dream = command("dream", "the agent, or you, inside M's dream, in a window")
    dream.add_argument("--tau", type=float, help="temperature; the one that C was evolved at")
    dream.add_argument("--play", action="store_true", help="the arrow keys act instead of the agent")
    for sub in (watch, dream):
        sub.add_argument("--png", type=Path, metavar="FILE", help="write a strip of pictures instead")
        sub.add_argument("--seed", type=int, default=0)

    export = command("export", "a run's weights in float16 with their configuration: to keep, ship or share")
    export.add_argument("folder", type=Path, help="where they go; RUN of every command")
    command("report", "tables and pictures of a run")
    command("gradcheck", "check every hand-written gradient", run=False)
    bench = command("bench", "time the hot paths beside PyTorch, pycma and the bare environments", run=False)
    bench.add_argument("--json", type=Path, metavar="FILE")
    bench.add_argument("--only", type=lambda names: names.split(","), metavar="NAME,...", help="these rows alone")
    bench.add_argument("--scaling", action="store_true", help="cost against threads, dreams, data and parameters")
    return main


def main(argv: list[str] | None = None) -> int:
    """Run a command -> exit code: 0 done, 1 failed, 2 usage."""
    args = parser().parse_args(argv)
    try:
        _check(args)
        return COMMANDS[args.command](args) or 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 1
    except Exception as error:
        if args.debug:
            raise
        text = str(error).strip() or type(error).__name__
        usage = type(error).__name__ == "SettingError"
        print(
            f"run.py: {text}"
            if usage or _ours(error)
            else f"run.py: {type(error).__name__}: {text} (--debug shows where)",
            file=sys.stderr,
        )
        return 2 if usage else 1


def _ours(error: Exception) -> bool:
    return type(error).__module__.startswith("wm_numpy")


def _check(args: argparse.Namespace) -> None:
    """What several commands take."""
    from wm_numpy import config, parallel

    if args.workers is not None:
        if args.workers < 1:
            raise config.SettingError(f"--workers {args.workers}: at least 1")
        parallel.set_workers(args.workers)
    if getattr(args, "seed", 0) < 0:
        raise config.SettingError(f"--seed {args.seed}: at least 0")
    if getattr(args, "episodes", 2) < 2:
        raise config.SettingError(f"--episodes {args.episodes}: at least 2")
    if args.command == "dream" and args.tau is not None:
        _temperatures(str(args.tau))


def train(args: argparse.Namespace) -> None:
    from wm_numpy import config, experiment, report

    if args.stage is not None and args.stage not in experiment.STAGES:
        raise config.SettingError(f"unknown stage {args.stage!r}: choose from {', '.join(experiment.STAGES)}")
    settings = config.resolve(args.task, args.preset, args.set, args.seed)
    run = experiment.Experiment(settings, args.out or Path("runs") / args.task)
    print(report.header(settings, run.folder, run.disk_needed()), flush=True)
    last = args.stage or experiment.STAGES[-1]
    run.run(experiment.STAGES[: experiment.STAGES.index(last) + 1])
    if args.stage in (None, "evaluate"):
        report.write(run.folder)
        print(report.table(run.folder))


def sweep(args: argparse.Namespace) -> None:
    from wm_numpy import config, experiment, report

    changes = config.pairs(args.set)
    out = args.out or Path("runs") / f"{Path(args.run).name}-sweep"
    folders = {}
    for tau in _temperatures(args.tau):
        run = experiment.branch(args.run, out / f"tau-{tau:g}", changes | {"evolve.tau": tau})
        folders[tau] = run.folder
        print(f"tau {tau:g} -> {run.folder}", flush=True)
        run.run(("evolve", "evaluate"))
    print(report.sweep_table(folders))


def judge(args: argparse.Namespace) -> None:
    from wm_numpy import agent, judge

    print(judge.table(agent.load(args.run), args.episodes, _temperatures(args.tau)))


def _temperatures(text: str) -> list[float]:
    from wm_numpy import config

    return [config.resolve("doom", settings=[f"evolve.tau={tau}"]).evolve.tau for tau in text.split(",")]


def settings(args: argparse.Namespace) -> None:
    from wm_numpy import config

    print(config.help_text())


def evaluate(args: argparse.Namespace) -> None:
    from wm_numpy import agent, data, experiment, report

    player = agent.load(args.run)
    task = player.config.task
    result = experiment.evaluate(task, None if args.random else player, args.episodes, args.seed, experiment.Log())
    print(report.score_line("random policy" if args.random else "agent", result))
    if args.json:
        data.write(args.json, result)


def watch(args: argparse.Namespace) -> None:
    from wm_numpy import viewer

    viewer.watch(args.run, args.seed, args.png)


def dream(args: argparse.Namespace) -> None:
    from wm_numpy import viewer

    viewer.dream(args.run, args.seed, args.png, args.tau, args.play)


def report(args: argparse.Namespace) -> None:
    from wm_numpy import agent, report

    folder = agent.run_folder(args.run)
    report.write(folder)
    print(report.table(folder))


def export(args: argparse.Namespace) -> None:
    from wm_numpy import agent

    agent.export(args.run, args.folder)


def gradcheck(args: argparse.Namespace) -> int:
    from wm_numpy import gradcases

    return gradcases.main()


def bench(args: argparse.Namespace) -> None:
    from tests import bench

    bench.main(args.json, args.scaling, args.only)


COMMANDS = {
    "train": train, "sweep": sweep, "judge": judge, "settings": settings, "evaluate": evaluate,
    "watch": watch, "dream": dream, "report": report, "export": export, "gradcheck": gradcheck, "bench": bench,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
