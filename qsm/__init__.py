"""Online diffusion-policy reinforcement learning: the `qsm` command and what runs behind it."""

__version__ = "0.1.0"
