"""Runs and studies: what `train.py` and the commands in `tools/` do.

A *run* trains or tests one method on one dataset (`run`); a *study* is a set of runs with their tables,
plots and report (`studies/`).
"""
