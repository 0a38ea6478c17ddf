"""From an empty folder to an agent: episodes, batches, the loops, the stages. It imports worlds and the rooms above."""
