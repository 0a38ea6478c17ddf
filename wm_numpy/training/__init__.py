"""From an empty folder to an agent: episodes, batches, the loops, the stages. It imports envs and the rooms above."""
