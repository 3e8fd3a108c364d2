#!/usr/bin/env bash
# Train MAMBA Diffusion V2. Sets itself up, trains in the background, writes training_v2_output.log.
#
#   QUICK=1 ./run_mamba_v2_training.sh                 a small model in minutes, in the foreground
#   ./run_mamba_v2_training.sh                         the default model
#   D_MODEL=128 EPOCHS=200 ./run_mamba_v2_training.sh  other settings (README: table of variables)
#   STATUS=1 or STOP=1 ./run_mamba_v2_training.sh      look after it, stop it; the same command goes on
#
# Further arguments go to train_mamba_v2.py as they are (--help explains all of them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

SCRIPT=train_mamba_v2.py
LOG=${LOG:-training_v2_output.log}
FLAGS=(
  "PERCEIVER_ITER perceiver_iterations" "PERCEIVER_HEADS perceiver_heads" "DROPOUT dropout"
  "D_STATE d_state" "INIT_FROM_V1 init_from_v1"
)

if [ "${QUICK-}" = 1 ]; then  # what two CPU cores can train in minutes; each still yours to set
  : "${FOREGROUND:=1}" "${SAVE_DIR:=checkpoints_mamba_v2/quick}"
  : "${D_MODEL:=64}" "${NUM_LAYERS:=2}" "${PERCEIVER_ITER:=1}" "${PERCEIVER_HEADS:=4}"
  : "${BATCH_SIZE:=32}" "${EPOCHS:=12}" "${LR:=2e-3}" "${WARMUP:=50}" "${ZERO_SHARE:=0.5}"
  : "${QUERIES_MIN:=128}" "${QUERIES_MAX:=256}"
  : "${EVAL_EVERY:=2}" "${VISUALIZE_EVERY:=6}" "${SAVE_EVERY:=2}"
fi

. scripts/runner.sh
run_training "$@"
