# Sourced by run_mamba_training.sh and run_mamba_v2_training.sh: variables to flags, background,
# status, stop. The sourcing script sets
#
#   SCRIPT   training script          LOG      log file
#   SAVE_DIR default folder           FLAGS    array of "VARIABLE flag" pairs of its own
#
# and calls `run_training "$@"`. Defaults live in the Python settings alone: a variable that is
# not set adds no flag.

. scripts/setup.sh

COMMON_FLAGS=(
  "DATA data" "DATA_VAL data_val" "DATA_DIR data_dir" "VALUE_RANGE value_range"
  "IMAGE_SIZE image_size" "OBSERVE observe"
  "EPOCHS epochs" "BATCH_SIZE batch_size" "ACCUMULATE accumulate" "LR lr" "WARMUP warmup"
  "SAVE_EVERY save_every" "EVAL_EVERY eval_every" "VISUALIZE_EVERY visualize_every"
  "EVAL_PICTURES eval_pictures" "KEEP_LAST keep_last" "RESUME resume"
  "D_MODEL d_model" "NUM_LAYERS num_layers" "PRIOR prior" "NEIGHBOURS neighbours" "ORDER order"
  "QUERIES_MIN queries_min" "QUERIES_MAX queries_max" "ZERO_SHARE zero_share"
  "DEVICE device" "PRECISION precision" "COMPILE compile" "SAVE_DIR save_dir" "SEED seed"
  "NUM_WORKERS num_workers"
)

flags_from_variables() {  # fills ARGUMENTS
  local pair variable value
  ARGUMENTS=()
  for pair in "${COMMON_FLAGS[@]}" "${FLAGS[@]}"; do
    variable=${pair% *}
    value=${!variable-}
    [ -z "$value" ] && continue
    if [ "$variable" = COMPILE ]; then
      case $value in 1|true|True|yes) value=True ;; *) value=False ;; esac
    fi
    ARGUMENTS+=("--${pair#* }" "$value")
  done
}

is_running() {  # is the process of the PID file a training of ours?
  local pid
  pid=$(cat "$PID_FILE" 2>/dev/null) || return 1
  [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && ps -o args= -p "$pid" | grep -qF "$SCRIPT"
}

show_status() {
  if is_running; then
    echo "running, process $(cat "$PID_FILE")"
  else
    echo "not running"
  fi
  [ -f "$LOG" ] && grep -E '^(epoch|validation|done|stopped|error)' "$LOG" | tail -n 3
  return 0
}

stop_training() {
  if ! is_running; then
    echo "nothing to stop: no training runs"
    return
  fi
  local pid
  pid=$(cat "$PID_FILE")
  kill -TERM "$pid"
  echo "asked process $pid to finish its step and save"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
  tail -n 1 "$LOG"
}

launch_command() {  # fills COMMAND: plain python, or torchrun for NPROC or NNODES
  COMMAND=("$PYTHON" -u)
  if [ -n "${NNODES-}" ]; then
    COMMAND+=(-m torch.distributed.run --nnodes "$NNODES" --nproc_per_node "${NPROC:-1}"
              --rdzv_backend c10d --rdzv_endpoint "${RDZV_ENDPOINT:?set RDZV_ENDPOINT=host:port with NNODES}")
  elif [ "${NPROC:-1}" != 1 ]; then
    COMMAND+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
  fi
  COMMAND+=("$SCRIPT" "${ARGUMENTS[@]}" "$@")
}

run_training() {
  PID_FILE=${LOG%.log}.pid
  [ "${STATUS-}" = 1 ] && { show_status; exit 0; }
  [ "${STOP-}" = 1 ] && { stop_training; exit 0; }
  if is_running; then
    echo "error: a training runs already (process $(cat "$PID_FILE")): follow it with 'tail -f $LOG', stop it with 'STOP=1 $0'" >&2
    exit 2
  fi
  use_python requirements.txt
  flags_from_variables
  launch_command "$@"
  if [ "${DRY_RUN-}" = 1 ]; then
    exec "${COMMAND[@]}" --dry_run True
  fi
  : > "$LOG" || exit 2
  if [ "${FOREGROUND-}" = 1 ]; then
    echo $$ > "$PID_FILE"
    exec "${COMMAND[@]}" --log_file "$LOG"
  fi
  nohup "${COMMAND[@]}" >> "$LOG" 2>&1 < /dev/null &
  echo $! > "$PID_FILE"
  echo "training in the background, process $!"
  echo "  follow:  tail -f $LOG"
  echo "  status:  STATUS=1 $0"
  echo "  stop:    STOP=1 $0     (the same command again goes on)"
}
