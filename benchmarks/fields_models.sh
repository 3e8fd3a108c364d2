#!/usr/bin/env bash
# Train V1 and V2 on the fields of docs/fields.md, with as many steps each, and V2 once more from the
# weights that come with the project (INIT_FROM), and print the table.
#
#   benchmarks/fields_models.sh terrain       # 600 steps each of the quick models, 200 from weights
#   STEPS=2000 TUNED=400 FERRET=debs/usr/share/ferret-vis/data benchmarks/fields_models.sh terrain sst winds relief
#
# The variables of the runners (docs/operations.md) hold here, too. What is trained lies in RUNS,
# experiments/fields if that is not set; the same command goes on where it was stopped.
set -euo pipefail
CALLER=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
. scripts/variables.sh
. scripts/setup.sh
require_count STEPS
require_count TUNED
STEPS=${STEPS:-600} TUNED=${TUNED:-200} RUNS=$(from_caller "${RUNS:-experiments/fields}")
export BATCH_SIZE=16 EVAL_PICTURES=${EVAL_PICTURES:-16}
[ -z "${FERRET-}" ] || FERRET=$(from_caller "$FERRET")
[ $# -gt 0 ] || refuse "name one or more of terrain, sst, winds, relief"

checkpoints=()
for set in "$@"; do
  export VARIABLES=
  case $set in  # data, variables, and how many batches an epoch has
    terrain) DATA=terrain per_epoch=32 ;;
    relief)  DATA=${FERRET-}/etopo5.cdf per_epoch=452 ;;
    sst)     DATA=${FERRET-}/coads_climatology.cdf VARIABLES=SST per_epoch=3 ;;
    winds)   DATA=${FERRET-}/monthly_navy_winds.cdf VARIABLES="UWND VWND" per_epoch=54 ;;
    *) refuse "$set: name one or more of terrain, sst, winds, relief" ;;
  esac
  [ "$set" = terrain ] || [ -n "${FERRET-}" ] || refuse "$set needs FERRET; docs/fields.md says where it is"
  export DATA
  for model in V1 V2 "V2, INIT_FROM"; do
    folder=$RUNS/$set/${model//[, ]/} steps=$STEPS
    case $model in
      V1) best=mamba_best settings=(QUICK=1 WARMUP="${WARMUP:-50}" ./run_mamba_training.sh) ;;
      V2) best=mamba_v2_best settings=(QUICK=1 WARMUP="${WARMUP:-50}" ./run_mamba_v2_training.sh) ;;
      *) best=mamba_v2_best steps=$TUNED
         settings=(FOREGROUND=1 INIT_FROM=shipped LR=5e-4
                   WARMUP=20 ./run_mamba_v2_training.sh) ;;
    esac
    epochs=$(((steps + per_epoch - 1) / per_epoch)) every=$(((epochs + 3) / 4))
    mkdir -p "$folder"
    env SAVE_DIR="$folder" LOG="$folder/training.log" EPOCHS=$epochs EVAL_EVERY=$every \
      SAVE_EVERY=$every VISUALIZE_EVERY=$epochs "${settings[@]}"
    checkpoints+=(--checkpoint "$model=$folder/$best.pth")
  done
done
use_python requirements.txt
exec "$PYTHON" benchmarks/fields_table.py "$@" ${FIELDS:+--fields "$FIELDS"} "${checkpoints[@]}" ${FERRET:+--ferret "$FERRET"}
