#!/usr/bin/env bash
# Does a training run, at which epoch, its best PSNR, the time left? Of V2, of V1 if it was used, and
# of every other one that runs here with a log of its own. LOG=... asks about that one alone.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

STATUS=1 LOG=${LOG:-$here/training_v2_output.log} "$here/run_mamba_v2_training.sh"
[ -z "${LOG-}" ] || exit 0
[ ! -f "$here/training_output.log" ] || { echo "V1:"; STATUS=1 "$here/run_mamba_training.sh"; }
for pid in $(pgrep -f "$here/scripts/start.py train_mamba" || true); do
  log=$(ps -ww -o args= -p "$pid" | sed -E 's/.*start\.py train_mamba[a-z0-9_]* //; s/ --.*//')
  case $log in "$here"/training_output.log|"$here"/training_v2_output.log|'') continue ;; esac
  echo "$log:"
  script=run_mamba_v2_training.sh
  ! ps -ww -o args= -p "$pid" | grep -q 'start.py train_mamba /' || script=run_mamba_training.sh
  STATUS=1 LOG=$log "$here/$script"
done
