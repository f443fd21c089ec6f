"""Small Markov decision processes that are known: planning, and Q-score matching on a table. NumPy in float64."""
