"""Doom Take Cover: the paper's second task (section 4), and the game behind it. vizdoom is imported when it is made."""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..settings.tasks import Task
from ..system import process

ROWS, COLUMNS = 100, 160  # of 120 x 160: the paper's 400 of 480 rows


class TakeCover:
    """Stay alive while monsters throw fireballs from the other end of the room.

    Description: ViZDoom's take_cover scenario as VizdoomTakeCover-v1 of gymnasium runs it (one tic per frame, skill 4,
        RGB, no HUD), driven directly: the same seed gives the same game.
    Action Space: which buttons are held, (left, right). C's a < -1/3 moves left, a > 1/3 right, else it stays.
    Observation Space: the screen, (120, 160, 3) uint8. V sees the upper 5/6 of it.
    Rewards: +1 for each tic survived.
    Starting State: in the middle of the room; the seed decides where and when monsters appear.
    Episode End: terminated by death; the scenario has no timeout. ViZDoom shows nothing after death: the observation
        of the last step repeats the one before.
    """

    tells_positions = False  # of the player and all objects; an agent never gets them
    action_space = None  # the declaration has `act`
    unwrapped = property(lambda self: self)

    def __init__(self, render_mode: str | None = None):
        import vizdoom

        broken = "ViZDoomUnexpectedExit", "ViZDoomIsNotRunning", "ViZDoomError"
        broken += "MessageQueue", "SharedMemory"
        self.deaths = tuple(getattr(vizdoom, f"{name}Exception") for name in broken)
        self.rng = np.random.default_rng()
        self.doom = doom = vizdoom.DoomGame()
        doom.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
        # What the figures of the paper depend on is set here, whatever the file says or will say.
        doom.set_doom_skill(4)
        doom.set_mode(vizdoom.Mode.PLAYER)
        doom.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
        place = [vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y]
        doom.set_available_game_variables(place if self.tells_positions else [])
        doom.set_objects_info_enabled(self.tells_positions)
        doom.set_screen_format(vizdoom.ScreenFormat.RGB24)
        # In 64 x 64 the same fireballs are seen as with 320 x 240, which takes three times as long.
        doom.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        doom.set_render_hud(False)
        doom.set_window_visible(False)
        doom.set_sound_enabled(False)
        doom.set_living_reward(1)
        doom.set_death_penalty(0)
        doom.set_episode_start_time(1)
        doom.set_episode_timeout(0)
        _start_engine(doom, os.path.join(os.path.dirname(vizdoom.__file__), "vizdoom"))

    def reset(self, *, seed: int | None = None):
        """As Gymnasium's."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        # Always a seed: ViZDoom would draw its own from the clock. This draw is VizdoomTakeCover-v1's.
        self.doom.set_seed(int(self.rng.integers(2**32, dtype=np.uint32)))
        self.doom.new_episode()
        self.screen = self.doom.get_state().screen_buffer
        return self.screen, {}

    def step(self, buttons: Sequence[bool], count: int = 1):
        """As Gymnasium's, of `count` tics."""
        reward = self.doom.make_action(buttons, count)
        terminated = self.doom.is_episode_finished()
        if not terminated:
            self.screen = self.doom.get_state().screen_buffer
        return self.screen, reward, terminated, False, {}

    def render(self) -> np.ndarray:
        """The screen, four times as large."""
        return self.screen.repeat(4, axis=0).repeat(4, axis=1)

    def close(self) -> None:
        """End the engine."""
        self.doom.close()


# ViZDoom's engine is a process of its own. Left alone it outlives a killed parent for ever, and writes `_vizdoom` into
# the current folder. So it is started through a script that asks Linux to kill it when its parent dies (1 is
# PR_SET_PDEATHSIG, 9 SIGKILL), changes to a temporary folder, and becomes the engine. If the parent died before that,
# the script ends.
_LAUNCH = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.chdir(sys.argv[2])
    os.execv(sys.argv[3], sys.argv[3:])"""


def _start_engine(game, engine: str) -> None:
    """`game.init()`, with no file left in the current folder and no engine left when this process is killed."""
    game.set_doom_config_path(os.devnull)  # else the engine writes `_vizdoom.ini` when it ends
    if sys.platform != "linux":
        return game.init()
    # In a folder mounted noexec no script can run, and ViZDoom would die without a message.
    folders = [tempfile.gettempdir(), "/dev/shm", os.path.expanduser("~")]
    runs = [f for f in folders if os.access(f, os.W_OK) and not os.statvfs(f).f_flag & os.ST_NOEXEC]
    if not runs:
        places = ", ".join(folders)
        raise RuntimeError(f"No script can run in {places}: set TMPDIR to a folder where one can.")
    with process.temporary_folder(runs[0]) as scratch:
        python = [sys.executable, "-IS", "-c", _LAUNCH]
        command = shlex.join([*python, str(os.getpid()), scratch, engine])
        script = Path(scratch, "engine")
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o700)
        game.set_vizdoom_path(str(script))
        game.init()
    # Both sides have mapped the shared memory, so its name can go: a killed process leaves no 10 MB behind.
    for kind in ("SM", "MQCtr", "MQDoom"):
        Path(f"/dev/shm/ViZDoom{kind}{game.get_instance_id()}").unlink(missing_ok=True)


def _act(action: np.ndarray) -> list[bool]:
    (side,) = action
    return [side < -1 / 3, side > 1 / 3]


TASK = Task(
    make=TakeCover,
    title="Doom Take Cover",
    actions=1,
    discrete=False,
    act=_act,
    swing=120,  # from wall to wall
    picture="observation",
    crop=(slice(ROWS), slice(None)),
    size=(ROWS, COLUMNS),
    shows_end=False,
    max_steps=2100,
    fps=35,
    skips=True,
    lengths=(320, 800),
    strip_from=100,  # monsters come one by one
    reward="frames survived",
    reward_range=(0.0, 1.0),
    keys={"left": (-1,), "right": (1,)},
    rest=(0,),
    labels=("C would go",),
    unit="frames survived",
    hint="dodge the fireballs",
    died="A fireball hit.",
    solved_at=750,
    paper="1092 +- 556",
    random="210 +- 108",
    blind="879 +- 514",  # it outruns the fireballs, and sees none
    expected={"quick": (971, 1124, 924), "laptop": (1111, 1132, 1051)},
    # Doom in the dream; 64 candidates of 16 episodes (their log/*.hist.json).
    authors={
        1: 305, 5: 350, 10: 355, 15: 401, 20: 484, 25: 476, 30: 589, 40: 619, 50: 686, 60: 658,
        80: 704, 100: 698, 120: 687, 140: 708, 160: 715, 180: 751, 200: 769,
    },
    table2={
        0.1: ("2086 +- 140", "193 +- 58"),
        0.5: ("2060 +- 277", "196 +- 50"),
        1.0: ("1145 +- 690", "868 +- 511"),
        1.15: ("918 +- 546", "1092 +- 556"),
        1.3: ("732 +- 269", "753 +- 139"),
    },
    packages="vizdoom",
    face="TakeCover-v0",
    telling="wm_numpy.lab.fireballs:OpenTakeCover",
)  # fmt: skip
