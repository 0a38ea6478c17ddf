"""Reality and dream behind one interface, the rollout, looking ahead. They import models and the rooms above."""
