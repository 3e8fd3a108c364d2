#!/usr/bin/env bash
# Lint, types, tests. Sets itself up. Arguments go to pytest: ./run_tests.sh -m long
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. scripts/setup.sh
use_python requirements-dev.txt
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m mypy
# One process a core, one thread each: tiny models on many threads mostly wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest -n auto "$@"
