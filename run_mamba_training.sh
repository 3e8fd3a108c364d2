#!/usr/bin/env bash
# Train MAMBA Diffusion V1, the baseline. Sets itself up, trains in the background, writes
# training_output.log.
#
#   QUICK=1 ./run_mamba_training.sh                 trained as V2's quick model, in the foreground
#   ./run_mamba_training.sh                         the default model
#   D_MODEL=256 EPOCHS=200 ./run_mamba_training.sh  other settings (docs/operations.md)
#   STATUS=1 or STOP=1 ./run_mamba_training.sh      look after it, stop it; the same command goes on
#
# Further arguments go to train_mamba.py as they are (--help explains all of them), for example
# --cross_attention_residual True.
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. scripts/variables.sh
paths_of_the_caller

SCRIPT=train_mamba.py
LOG=${LOG:-training_output.log}
FLAGS=("HEADS heads" "DROPOUT dropout" "D_STATE d_state")

if is_true QUICK; then  # twice the width of V2's quick model, as in the default models
  : "${SAVE_DIR:=checkpoints_mamba/quick}" "${D_MODEL:=128}" "${NUM_LAYERS:=2}" "${HEADS:=4}"
  . scripts/quick.sh
fi

. scripts/runner.sh
run_training "$@"
