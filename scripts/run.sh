#!/usr/bin/env bash
# Called by all other scripts with their path and arguments. What they run: studies/scripts/table.yaml
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; fi
fi
if ! command -v "$PYTHON" >/dev/null; then
    echo "error: there is no $PYTHON: run \`make setup\` in $root, or set PYTHON to your interpreter" >&2
    exit 2
fi
exec "$PYTHON" "$root/tools/script.py" "$@"
