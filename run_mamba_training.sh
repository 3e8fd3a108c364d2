#!/usr/bin/env bash
# Train MAMBA Diffusion V1, the baseline, as run_mamba_v2_training.sh trains V2. Writes
# training_output.log.
#
#   QUICK=1 ./run_mamba_training.sh                 trained as V2's quick model, in the foreground
#   ./run_mamba_training.sh                         the default model
#   D_MODEL=256 EPOCHS=200 ./run_mamba_training.sh  other settings (docs/operations.md)
#   STATUS=1 or STOP=1 ./run_mamba_training.sh      look after it, stop it; the same command goes on
set -euo pipefail
MODULE=train_mamba DEFAULT_LOG=training_output.log
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/runner.sh"
