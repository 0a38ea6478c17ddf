"""V, M and C, CMA-ES, and the agent that they make. They import core and settings."""
