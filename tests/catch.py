import gymnasium as gym
import numpy as np

from wm_numpy import Task


class Catch(gym.Env):  # catch 14 falling balls: go left, stay or go right
    action_space = gym.spaces.Discrete(3)
    observation_space = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.paddle, self.left, self.x, self.y = 42, 14, self.np_random.integers(90), 0
        return self.picture(), {}

    def step(self, action):
        self.paddle = int(np.clip(self.paddle + 4 * (action - 1), 0, 84))
        self.y += 3
        caught = self.y == 84 and -6 < self.x - self.paddle < 12
        if self.y == 84:
            self.left, self.x, self.y = self.left - 1, self.np_random.integers(90), 0
        return self.picture(), float(caught), self.left == 0, False, {}

    def picture(self):
        frame = np.zeros((96, 96, 3), np.uint8)
        frame[self.y : self.y + 6, self.x : self.x + 6] = 255, 220, 80
        frame[90:, self.paddle : self.paddle + 12] = 80, 160, 255
        return frame


BALL = "evolve.horizon=15 evolve.episodes=64"  # 15 steps: M cannot know where the next ball appears
CATCH = Task(make=Catch, labels=("left", "stay", "right"), rest=(0, 1, 0), settings=BALL)
