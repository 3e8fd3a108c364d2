#!/usr/bin/env bash
# Run the tests. Sets itself up. Further arguments go to pytest: ./run_tests.sh -m long
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/setup.sh
use_python requirements-dev.txt
exec "$PYTHON" -m pytest "$@"
