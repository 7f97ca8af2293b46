"""Studies: methods, datasets and seeds side by side, from a YAML file to tables, plots and a
report.
"""
