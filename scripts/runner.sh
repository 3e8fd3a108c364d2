# Sourced by run_mamba_training.sh and run_mamba_v2_training.sh with MODULE, the training script, and
# the name of its log in DEFAULT_LOG: start in the background or foreground, status, stop.
# scripts/start.py turns variables into flags; it carries LOG among its arguments, which tells its
# process from another one that has got the same number.

HERE=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
. "$HERE/scripts/setup.sh"
GIVEN_LOG=${LOG-} GIVEN_SAVE_DIR=${SAVE_DIR-}

refuse() {
  echo "error: $1" >&2
  exit 2
}

is_true() {  # variable: is it switched on? Words that say neither are refused
  case $(printf %s "${!1-}" | tr '[:upper:]' '[:lower:]') in
    1|true|yes|on) return 0 ;;
    0|false|no|off|'') return 1 ;;
  esac
  refuse "$1=${!1}: give 1, true, yes or on, or 0, false, no or off"
}

is_running() {
  local pid
  pid=$(cat "$PID_FILE" 2>/dev/null) && [ -n "$pid" ] || return 1
  case "$({ tr '\0' ' ' < "/proc/$pid/cmdline" || ps -ww -o args= -p "$pid"; } 2>/dev/null) " in
    *"start.py $MODULE $LOG "*) return 0 ;;
  esac
  return 1
}

this_run() {  # the part of the log since the last start
  awk 'index($0, "--- started ") == 1 { text = "" } { text = text $0 "\n" }
       END { printf "%s", text }' "$LOG" 2>/dev/null
}

ended_with_a_word() {
  this_run | grep -qE '^(nothing left|done|stopped|interrupted)|[Ee]rror'
}

show_status() {
  local said
  said=$(this_run | grep -E '^(preparing|going on|epoch|validation|WARNING|nothing|done|stopp|interrupted|error)' || true)
  if is_running; then
    echo "running, process $(cat "$PID_FILE")"
  elif [ -f "$LOG" ] && ! ended_with_a_word; then
    echo "not running; it ended without a word (killed? out of memory?): the same command goes on"
  else
    echo "not running"
  fi
  if [ -z "$GIVEN_LOG" ] && ! is_running && pgrep -f "$HERE/scripts/start.py $MODULE /" > /dev/null; then
    echo "one with a LOG of its own runs: see $HERE/run_status.sh"
  fi
  [ -z "$said" ] || tail -n 3 <<< "$said"
}

stop_training() {
  local pid
  is_running || { echo "nothing to stop: no training runs"; return; }
  pid=$(cat "$PID_FILE")
  kill -TERM "$pid" 2>/dev/null || true
  echo "asked process $pid to finish its step and save"
  while is_running; do sleep 0.2; done
  ended_with_a_word || echo "stopped before the first step; the same command starts again" >> "$LOG"
  tail -n 1 "$LOG"
}

hint() {  # the same command with another variable, as the user would have to type it
  local variable given text=$1
  for variable in LOG SAVE_DIR; do
    given=GIVEN_$variable
    [ -z "${!given}" ] || text="$variable=$(printf %q "${!given}") $text"
  done
  echo "$text $0"
}

refuse_second() {
  ! is_running || refuse "a training runs already (process $(cat "$PID_FILE")): follow it with 'tail -f $seen', stop it with '$(hint STOP=1)'"
}

case ${LOG:=$HERE/$DEFAULT_LOG} in /*) ;; *) LOG=$PWD/$LOG ;; esac
PID_FILE=${LOG%.log}.pid
seen=$(printf %q "${GIVEN_LOG:-${LOG#"$PWD"/}}")  # the log as the caller would name it
away=  # the project's folder, for defaults of a caller in another
[ "$PWD" = "$HERE" ] || away=$HERE/

if is_true STATUS; then show_status; exit; fi
if is_true STOP; then stop_training; exit; fi
if is_true QUICK; then . "$HERE/scripts/quick.sh"; fi
is_true FOREGROUND || true  # a word that is neither is refused before anything is written
use_python requirements.txt
case " $* " in *" -h "*|*" --help "*) exec "$PYTHON" "$HERE/$MODULE.py" --help ;; esac
START=("$PYTHON" -u "$HERE/scripts/start.py" "$MODULE" "$LOG" "$@")
if is_true DRY_RUN; then exec "${START[@]}" --dry_run True; fi
[ ! -d "$LOG" ] || refuse "LOG=$GIVEN_LOG is a folder: name a file"
refuse_second
if is_true FOREGROUND; then
  mkdir -p "$(dirname "$LOG")" 2>/dev/null || refuse "LOG=$LOG: its folder cannot be made"
  echo $$ > "$PID_FILE" || exit 2
  exec "${START[@]}" --log_file "$LOG"
fi
# What a start would refuse or warn of is said here, not in a log.
said=$({ "${START[@]}" --dry_run True | { grep ^WARNING || true; }; } 2>&1) || { echo "$said" >&2; exit 2; }
[ -z "$said" ] || echo "$said" >&2
mkdir -p "$(dirname "$LOG")" 2>/dev/null || refuse "LOG=$LOG: its folder cannot be made"
refuse_second
nohup "${START[@]}" >> "$LOG" 2>&1 < /dev/null &
echo $! > "$PID_FILE" || exit 2
echo "training in the background, process $!"
echo "  follow:  tail -f $seen"
echo "  status:  $(hint STATUS=1)"
echo "  stop:    $(hint STOP=1)     (the same command again goes on)"
