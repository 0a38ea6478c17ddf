"""Declared worlds, reality and the dream behind one interface, and the paper's rollout. They import models and the rooms above."""
