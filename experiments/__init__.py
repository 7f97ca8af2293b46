"""Runs (`run`: train or test one method on one dataset) and studies, which are sets of runs
(`studies/`).
"""
