"""Declared worlds, reality and dream behind one interface, the rollout. They import models and the rooms above."""
