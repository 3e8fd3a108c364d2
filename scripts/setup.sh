# Sourced by the runners: finds a Python that has what a requirements file asks for, or makes one.
#
#   use_python requirements.txt     sets $PYTHON
#
# The active Python is taken when it has every package (any version: a GPU machine may come with
# its own torch). Otherwise .venv is made with Python 3.11 or newer and filled; a stamp remembers
# what it was filled with, so that the second time costs nothing.

has_packages() {  # python, requirements file: can it find every package named there?
  "$1" - "$2" <<'PY' 2>/dev/null
import os, re, sys
from importlib.metadata import distribution
def names(path):
    for line in open(path):
        line = line.split("#")[0].strip()
        if line.startswith("-r"):
            yield from names(os.path.join(os.path.dirname(path), line[2:].strip()))
        elif line:
            yield re.split(r"[=<>!~\[; ]", line)[0]
if sys.version_info < (3, 11):
    sys.exit(1)
for name in names(sys.argv[1]):
    distribution(name)
PY
}

find_python() {  # prints a Python of at least 3.11
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with venv found: install it (Debian: apt install python3 python3-venv)" >&2
  return 2
}

use_python() {  # requirements file
  local active stamp wanted project
  project=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
  active=$(command -v python3 || true)
  if [ -n "$active" ] && has_packages "$active" "$project/$1"; then
    PYTHON=$active
    return
  fi
  stamp=$project/.venv/.filled
  wanted="$1 $(cat "$project"/requirements*.txt | cksum)"
  PYTHON=$project/.venv/bin/python
  if grep -qsxF "$wanted" "$stamp" && [ -x "$PYTHON" ]; then
    return
  fi
  active=$(find_python) || exit 2
  echo "setting up .venv with $1 (once; takes some minutes)"
  [ -x "$PYTHON" ] && "$PYTHON" -c '' 2>/dev/null || "$active" -m venv --clear "$project/.venv" || exit 2
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$project/$1" || {
    echo "error: packages could not be installed: is the package registry reachable?" >&2
    exit 2
  }
  echo "$wanted" >> "$stamp"
}
