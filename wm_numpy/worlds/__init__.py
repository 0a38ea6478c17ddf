"""Declared worlds, reality and dream behind one interface, the paper's rollout. They import models and the rooms above."""
