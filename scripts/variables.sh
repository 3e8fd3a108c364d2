# Sourced by the runners: what variables of the environment mean.
#
# Paths that are not absolute mean the folder of the caller (CALLER), and the runners work in the
# project's folder: `paths_of_the_caller` makes the one from the other.

refuse() {
  echo "error: $1" >&2
  exit 2
}

is_true() {  # variable: is it switched on? Words that say neither are refused
  local value
  value=$(printf %s "${!1-}" | tr '[:upper:]' '[:lower:]')
  case $value in
    1|true|yes|on) return 0 ;;
    0|false|no|off|'') return 1 ;;
  esac
  refuse "$1=${!1}: give 1, true, yes or on, or 0, false, no or off"
}

require_count() {  # variable: a whole number from 1, or not set
  [[ ${!1-} =~ ^(|0*[1-9][0-9]{0,5})$ ]] || refuse "$1=${!1}: give a whole number of at least 1"
}

from_caller() {  # path: as seen from the project's folder
  local path=$1
  case $path in
    /*) ;;
    *) [ "$CALLER" = "$PWD" ] || path=$CALLER/$path ;;
  esac
  printf %s "${path#"$PWD"/}"
}

paths_of_the_caller() {
  local variable
  GIVEN_LOG=${LOG-} GIVEN_SAVE_DIR=${SAVE_DIR-}
  for variable in DATA DATA_VAL DATA_TEST DATA_DIR SAVE_DIR LOG INIT_FROM INIT_FROM_V1 CANVAS_FROM OBSERVE; do
    [ -n "${!variable-}" ] || continue
    case $variable=${!variable} in
      DATA=photos|DATA=terrain|DATA=cifar10) ;;
      OBSERVE=*:*|INIT_FROM=shipped|CANVAS_FROM=shipped) ;;
      *) printf -v "$variable" %s "$(from_caller "${!variable}")" ;;
    esac
  done
}

refuse_log_that_is_data() {
  local variable
  for variable in DATA DATA_VAL DATA_TEST INIT_FROM INIT_FROM_V1 CANVAS_FROM OBSERVE; do
    if [ -n "${!variable-}" ] && [ "$LOG" -ef "${!variable}" ]; then
      refuse "LOG=$LOG is the file of $variable: name another log"
    fi
  done
}
