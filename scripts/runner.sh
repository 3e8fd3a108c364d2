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
  "DATA data" "DATA_VAL data_val" "DATA_TEST data_test" "DATA_DIR data_dir"
  "DATA_CHANNELS data_channels" "VALUE_RANGE value_range" "UNITS units"
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
  local pair variable value words
  ARGUMENTS=()
  for pair in "${COMMON_FLAGS[@]}" "${FLAGS[@]}"; do
    variable=${pair% *}
    value=${!variable-}
    [ -z "$value" ] && continue
    if [ "$variable" = COMPILE ]; then
      case $value in 1|true|True|yes) value=True ;; *) value=False ;; esac
    fi
    words=("$value")
    [ "$variable" = VALUE_RANGE ] && read -ra words <<< "$value"  # several numbers: -2 40
    ARGUMENTS+=("--${pair#* }" "${words[@]}")
  done
}

is_running() {  # is the process of the PID file ours? (its number may be another's by now)
  local pid arguments
  pid=$(cat "$PID_FILE" 2>/dev/null) && [ -n "$pid" ] || return 1
  if [ -r "/proc/$pid/cmdline" ]; then
    [ "$(readlink "/proc/$pid/cwd")" = "$(pwd -P)" ] || return 1
    arguments=$(tr '\0' ' ' < "/proc/$pid/cmdline")
  else
    arguments=$(ps -o args= -p "$pid" 2>/dev/null) || return 1
  fi
  grep -qF -e "$SCRIPT" -e "$(basename "$0")" <<< "$arguments"
}

children() {  # process numbers of the children of a process
  cat "/proc/$1/task/$1/children" 2>/dev/null || pgrep -P "$1" || true
}

this_run() {  # the part of the log since the last start
  awk -v mark="$START_MARK" 'index($0, mark) == 1 { text = "" } { text = text $0 "\n" }
                             END { printf "%s", text }' "$LOG" 2>/dev/null
}

show_status() {
  local said
  said=$(this_run | grep -E '^(going on|epoch|validation|WARNING|nothing|done|stopp|interrupted|error)' || true)
  if is_running; then
    echo "running, process $(cat "$PID_FILE")"
  elif [ -f "$LOG" ] && ! this_run | grep -qE '^(nothing left|done|stopped|interrupted)|[Ee]rror'; then
    echo "not running; it ended without a word (killed? out of memory?): the same command goes on"
  else
    echo "not running"
  fi
  [ -z "$said" ] || tail -n 3 <<< "$said"
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
  while is_running; do sleep 0.2; done
  tail -n 1 "$LOG"
}

claim() {  # one start at a time: the PID file is ours, or another's who runs
  if ! (set -o noclobber; echo $$ > "$PID_FILE") 2>/dev/null; then
    if is_running; then
      echo "error: a training runs already (process $(cat "$PID_FILE")): follow it with 'tail -f $LOG', stop it with 'STOP=1 $0'" >&2
      exit 2
    fi
    echo $$ > "$PID_FILE" || exit 2
  fi
}

launch_command() {  # fills COMMAND: plain python, or torchrun for NPROC or NNODES
  COMMAND=("$PYTHON" -u)
  DISTRIBUTED=1
  if [ -n "${NNODES-}" ]; then
    COMMAND+=(-m torch.distributed.run --nnodes "$NNODES" --nproc_per_node "${NPROC:-1}"
              --rdzv_backend c10d --rdzv_endpoint "${RDZV_ENDPOINT:?set RDZV_ENDPOINT=host:port with NNODES}"
              --rdzv_id "${RDZV_ID:-sparsefield}")
  elif [ "${NPROC:-1}" != 1 ]; then
    COMMAND+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
  else
    DISTRIBUTED=0
  fi
  COMMAND+=("$SCRIPT" "${ARGUMENTS[@]}" "$@")
}

run_ranks() {  # torchrun in a group of its own. It would end its ranks at a signal, so they get it
  local torchrun code=0
  : "${OMP_NUM_THREADS:=$(threads_per_rank)}"
  export OMP_NUM_THREADS
  set -m
  "${COMMAND[@]}" "$@" < /dev/null &
  torchrun=$!
  trap 'ranks=$(children "$torchrun"); kill -TERM ${ranks:-$torchrun} 2>/dev/null || true' TERM INT
  while kill -0 "$torchrun" 2>/dev/null; do
    wait "$torchrun" && code=0 || code=$?
  done
  return "$code"
}

threads_per_rank() {
  local threads=$(( $(getconf _NPROCESSORS_ONLN) / ${NPROC:-1} ))
  echo $(( threads > 0 ? threads : 1 ))
}

launch() {  # further flags: become the training, or watch over its ranks
  if [ "$DISTRIBUTED" = 0 ]; then
    exec "${COMMAND[@]}" "$@"
  fi
  run_ranks "$@"
}

run_training() {
  PID_FILE=${LOG%.log}.pid
  START_MARK="--- started "
  [ "${STATUS-}" = 1 ] && { show_status; exit 0; }
  [ "${STOP-}" = 1 ] && { stop_training; exit 0; }
  if [ "${DRY_RUN-}" = 1 ]; then
    use_python requirements.txt
    flags_from_variables
    launch_command "$@"
    launch --dry_run True
    exit
  fi
  claim
  use_python requirements.txt
  flags_from_variables
  launch_command "$@"
  echo "$START_MARK$(date '+%Y-%m-%d %H:%M:%S') ---" >> "$LOG" || exit 2
  if [ "${FOREGROUND-}" = 1 ]; then
    launch --log_file "$LOG"
    exit
  fi
  (trap '' HUP; launch) >> "$LOG" 2>&1 < /dev/null &
  echo $! > "$PID_FILE"
  echo "training in the background, process $!"
  echo "  follow:  tail -f $LOG"
  echo "  status:  STATUS=1 $0"
  echo "  stop:    STOP=1 $0     (the same command again goes on)"
}
