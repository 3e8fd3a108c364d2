#!/usr/bin/env bash
# Does a training run, at which epoch, its best PSNR, the time left? Of V2, and of V1 if it was used.
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
STATUS=1 "$here/run_mamba_v2_training.sh"
[ ! -f "$here/training_output.log" ] || { echo "V1:"; STATUS=1 "$here/run_mamba_training.sh"; }
