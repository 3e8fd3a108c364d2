# Sourced by run_mamba_training.sh and run_mamba_v2_training.sh: variables to flags, background,
# status, stop. The sourcing script sets
#
#   SCRIPT   training script          LOG      log file
#   SAVE_DIR default folder           FLAGS    array of "VARIABLE flag" pairs of its own
#
# after scripts/variables.sh, and calls `run_training "$@"`. Defaults live in the Python settings alone: a variable that is
# not set adds no flag.

. scripts/setup.sh

COMMON_FLAGS=(
  "DATA data" "DATA_VAL data_val" "DATA_TEST data_test" "DATA_DIR data_dir"
  "DATA_CHANNELS data_channels" "VARIABLES variables" "VALUE_RANGE value_range" "UNITS units"
  "IMAGE_SIZE image_size" "OBSERVE observe"
  "EPOCHS epochs" "BATCH_SIZE batch_size" "ACCUMULATE accumulate" "LR lr" "WARMUP warmup"
  "SAVE_EVERY save_every" "EVAL_EVERY eval_every" "VISUALIZE_EVERY visualize_every"
  "EVAL_PICTURES eval_pictures" "KEEP_LAST keep_last" "RESUME resume"
  "D_MODEL d_model" "NUM_LAYERS num_layers" "PRIOR prior" "CANVAS_WIDTH canvas_width"
  "CANVAS_DROPOUT canvas_dropout" "CANVAS_FIRST canvas_first" "CANVAS_FROM canvas_from"
  "CANVAS_FLOW canvas_flow" "CANVAS_FLOW_WIDTH canvas_flow_width" "INIT_FROM init_from"
  "OPTIMISER optimiser" "NEIGHBOURS neighbours" "ORDER order"
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
      if is_true COMPILE; then value=True; else value=False; fi
    fi
    words=("$value")
    case $variable in
      VALUE_RANGE|VARIABLES) read -ra words <<< "$value" ;;  # several: -2 40
    esac
    ARGUMENTS+=("--${pair#* }" "${words[@]}")
  done
}

started() {  # when a process started, in words that no later process of its number has
  if [ -r "/proc/$1/stat" ]; then
    sed 's/.*) //' "/proc/$1/stat" | cut -d ' ' -f 20  # in ticks since the machine's start
  else
    ps -o lstart= -p "$1" 2>/dev/null
  fi
}

write_pid() {  # the PID file holds the number alone, so that `kill $(cat ...)` works
  started "$1" > "$PID_FILE.start" || exit 2
  echo "$1" > "$PID_FILE" || exit 2
}

has_ended() {  # nobody has asked yet how a process ended: a zombie
  case $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null || ps -o stat= -p "$1" 2>/dev/null) in
    Z*) return 0 ;;
  esac
  return 1
}

is_running() {  # is the process of the PID file ours? (its number may be another's by now)
  local pid
  pid=$(cat "$PID_FILE" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
  has_ended "$pid" && return 1
  [ "$(started "$pid")" = "$(cat "$PID_FILE.start" 2>/dev/null)" ]
}

children() {  # process numbers of the children of a process
  cat "/proc/$1/task/$1/children" 2>/dev/null || pgrep -P "$1" || true
}

this_run() {  # the part of the log since the last start
  awk -v mark="$START_MARK" 'index($0, mark) == 1 { text = "" } { text = text $0 "\n" }
                             END { printf "%s", text }' "$LOG" 2>/dev/null
}

ended_with_a_word() {  # does the last run's part of the log say how it ended?
  this_run | grep -qE '^(nothing left|done|stopped|interrupted)|[Ee]rror'
}

show_status() {
  local said
  said=$(this_run | grep -E '^(going on|epoch|validation|WARNING|nothing|done|stopp|interrupted|error)' || true)
  if is_running; then
    echo "running, process $(cat "$PID_FILE")"
  elif [ -f "$LOG" ] && ! ended_with_a_word; then
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
  kill -TERM "$pid" 2>/dev/null || true
  echo "asked process $pid to finish its step and save"
  while is_running; do sleep 0.2; done
  if ! ended_with_a_word; then
    echo "stopped before the first step; the same command starts again" >> "$LOG"
  fi
  tail -n 1 "$LOG"
}

claim() {  # one start at a time: the PID file is ours, or another's who runs
  if ! (set -o noclobber; echo $$ > "$PID_FILE") 2>/dev/null; then
    if is_running; then
      echo "error: a training runs already (process $(cat "$PID_FILE")): follow it with 'tail -f $(seen_log)', stop it with '$(hint STOP=1)'" >&2
      exit 2
    fi
  fi
  write_pid $$
  # STOP=1 while the training is being started ends what has been started, too.
  trap 'running=$(jobs -p); [ -z "$running" ] || kill -TERM $running; exit 143' TERM
}

seen_log() {  # the log file, as the caller would have to name it
  local log=${GIVEN_LOG:-$LOG}
  [ -n "$GIVEN_LOG" ] || [ "$CALLER" = "$PWD" ] || log=$PWD/$LOG
  printf %q "$log"
}

hint() {  # the same command with another variable, as the user would have to type it
  local text=$1 variable given
  for variable in LOG SAVE_DIR; do
    given=GIVEN_$variable
    if [ -n "${!given-}" ]; then
      text="$variable=$(printf %q "${!given}") $text"
    fi
  done
  echo "$text $0"
}

launch_command() {  # fills COMMAND: plain python, or torchrun for NPROC or NNODES
  COMMAND=("$PYTHON" -u)
  DISTRIBUTED=1
  if [ -n "${NNODES-}" ]; then
    COMMAND+=(-m torch.distributed.run --nnodes "$NNODES" --nproc_per_node "${NPROC:-1}"
              --rdzv_backend c10d --rdzv_endpoint "$RDZV_ENDPOINT"
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

check_counts() {  # numbers of processes and machines
  require_count NPROC
  require_count NNODES
  [ -z "${NNODES-}" ] || [ -n "${RDZV_ENDPOINT-}" ] || refuse "set RDZV_ENDPOINT=host:port with NNODES"
}

rehearse() {  # further flags: what a start would refuse is said here, not in a log
  local said
  said=$("$PYTHON" "$SCRIPT" "${ARGUMENTS[@]}" "$@" --dry_run True 2>&1 > /dev/null) && return
  echo "$said" >&2
  exit 2
}

asks_for_help() {
  local argument
  for argument in "$@"; do
    case $argument in -h|--help) return 0 ;; esac
  done
  return 1
}

run_training() {
  PID_FILE=${LOG%.log}.pid
  START_MARK="--- started "
  is_true STATUS && { show_status; exit 0; }
  is_true STOP && { stop_training; exit 0; }
  is_true FOREGROUND || true  # a word that is neither is refused before anything is written
  is_true COMPILE || true
  check_counts
  if asks_for_help "$@"; then
    use_python requirements.txt
    exec "$PYTHON" "$SCRIPT" --help
  fi
  if is_true DRY_RUN; then
    use_python requirements.txt
    flags_from_variables
    launch_command "$@"
    launch --dry_run True
    exit
  fi
  refuse_log_that_is_data
  [ ! -d "$LOG" ] || refuse "LOG=$LOG is a folder: name a file"
  mkdir -p "$(dirname "$LOG")" 2>/dev/null || refuse "LOG=$LOG: its folder cannot be made"
  claim
  use_python requirements.txt
  flags_from_variables
  launch_command "$@"
  is_true FOREGROUND || rehearse "$@"
  echo "$START_MARK$(date '+%Y-%m-%d %H:%M:%S') ---" >> "$LOG" || exit 2
  if is_true FOREGROUND; then
    trap - TERM
    launch --log_file "$LOG"
    exit
  fi
  (trap '' HUP; trap - TERM; launch) >> "$LOG" 2>&1 < /dev/null &
  write_pid $!
  trap - TERM
  echo "training in the background, process $!"
  echo "  follow:  tail -f $(seen_log)"
  echo "  status:  $(hint STATUS=1)"
  echo "  stop:    $(hint STOP=1)     (the same command again goes on)"
}
