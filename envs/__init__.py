"""Environments: one file a simulator, their contract in `envs.api`. Importing the package loads none."""
