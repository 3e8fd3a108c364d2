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
MODULE=train_mamba_v2 DEFAULT_LOG=training_v2_output.log
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/runner.sh"
