"""Parts of `scripts/speed.py` that say more than a rate: where an update's time goes, and how it grows."""
