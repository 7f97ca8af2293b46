"""Using what was learned: from a model (a run, an exported folder, a checkpoint) to predictions,
files and pages.
"""
