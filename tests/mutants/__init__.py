"""Mutation testing, for `make mutants`: small faults are planted in the code, and the tests have to find them."""
