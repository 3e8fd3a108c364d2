#!/usr/bin/env bash
# Train MAMBA Diffusion V2. Sets itself up, trains in the background, writes training_v2_output.log.
#
#   QUICK=1 ./run_mamba_v2_training.sh                 a small model in minutes, in the foreground
#   ./run_mamba_v2_training.sh                         the default model
#   D_MODEL=128 EPOCHS=200 ./run_mamba_v2_training.sh  other settings (docs/operations.md)
#   STATUS=1 or STOP=1 ./run_mamba_v2_training.sh      look after it, stop it; the same command goes on
#
# Further arguments go to train_mamba_v2.py as they are (--help explains all of them).
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. scripts/variables.sh
paths_of_the_caller

SCRIPT=train_mamba_v2.py
LOG=${LOG:-training_v2_output.log}
FLAGS=(
  "PERCEIVER_ITER perceiver_iterations" "PERCEIVER_HEADS perceiver_heads" "DROPOUT dropout"
  "D_STATE d_state" "INIT_FROM_V1 init_from_v1"
)

if is_true QUICK; then
  : "${SAVE_DIR:=checkpoints_mamba_v2/quick}" "${D_MODEL:=64}" "${NUM_LAYERS:=2}"
  : "${PERCEIVER_ITER:=1}" "${PERCEIVER_HEADS:=4}"
  . scripts/quick.sh
fi

. scripts/runner.sh
run_training "$@"
