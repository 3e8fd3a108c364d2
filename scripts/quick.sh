# Sourced with QUICK=1: what two CPU cores can train in minutes, for V1 and V2 on equally many crops.
# Each value is still yours to set.
set -a
: "${FOREGROUND:=1}" "${BATCH_SIZE:=32}" "${EPOCHS:=10}" "${LR:=2e-3}" "${WARMUP:=50}"
: "${START_SHARE:=${CANVAS_FIRST:-0.7}}"
: "${ZERO_SHARE:=0.5}" "${QUERIES_MIN:=128}" "${QUERIES_MAX:=256}"
: "${EVAL_EVERY:=2}" "${VISUALIZE_EVERY:=5}" "${SAVE_EVERY:=2}" "${NUM_LAYERS:=2}"
if [ "$MODULE" = train_mamba ]; then  # twice the width of V2's, as in the default models
  : "${SAVE_DIR:=${away}checkpoints_mamba/quick}" "${D_MODEL:=128}" "${HEADS:=4}"
else
  : "${SAVE_DIR:=${away}checkpoints_mamba_v2/quick}" "${D_MODEL:=64}"
  : "${UNET_WIDTH:=${CANVAS_WIDTH:-32}}" "${FLOW_UNET_WIDTH:=${CANVAS_FLOW_WIDTH:-32}}"
  : "${PERCEIVER_ITERATIONS:=${PERCEIVER_ITER:-1}}" "${PERCEIVER_HEADS:=4}"
fi
set +a
