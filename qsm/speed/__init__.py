"""How fast training runs: what `scripts/speed.py` and its like measure."""
