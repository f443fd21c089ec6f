"""Faults injected into real trainings, for `make faults`; tests/test_faults.py looks at what they leave."""
