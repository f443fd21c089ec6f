"""The whole training state of a run on disk, written behind the training."""
