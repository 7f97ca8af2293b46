"""Names of files in the output folder of a run. A command that needs no more does not wait for the
records of `common.results`.
"""

RUN_CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
