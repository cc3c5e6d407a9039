#!/usr/bin/env bash
# Trains, and again while that helps: launch/again.sh TIMES COMMAND ...
#
#   launch/again.sh 20 python -m medseg_jax.main \
#     --config=configs/unet.py --workdir=runs/unet
#
# The rule of all launch files. A training that ended with
#    75  since another process of it was lost,
#   134  for the same reason, which JAX found first,
#   137  since it was killed: too little memory, a lost machine,
#   143  by SIGTERM: its time is up, or another needs the machine,
# is started again, at most TIMES times, and only if its newest checkpoint is of
# a later step than the one it began with: what ends twice in one place will do
# so again. Any other status is the last word: 0 all is done, 1 the input is
# wrong.
#
# Leaves with that status; with 1 where a start led no further; and with 75
# where another start helps and is left to whoever started this script, since it
# made all of its own or got a SIGTERM itself, which it passes on.
set -uo pipefail
usage() {
  echo "usage: launch/again.sh TIMES COMMAND ... --workdir=DIR ..." >&2
  exit 1
}

[[ ${1:-} =~ ^[0-9]+$ ]] || usage
times=$1
shift
workdir=
for word in "$@"; do
  [[ $word == --workdir=* ]] && workdir=${word#*=}
done
[ -n "$workdir" ] || usage

# Sets `newest` to the step of the newest checkpoint, 0 without any, and `aside`
# to how many were found damaged. In no shell of its own, which a signal to all
# would end.
look() {
  local path step
  newest=0 aside=0
  for path in "$workdir"/checkpoints/latest/*; do
    step=${path##*/}
    [[ $step =~ ^[0-9]+$ ]] && ((10#$step > newest)) && newest=$((10#$step))
  done
  for path in "$workdir"/checkpoints/damaged/latest-*; do
    [ -e "$path" ] && ((++aside))
  done
}

child='' asked='' interrupted=''
end_child() { [ -z "$child" ] || kill -TERM "$child" 2>/dev/null; }
trap 'asked=1 interrupted=1; end_child' TERM
trap 'interrupted=1' INT  # a terminal sends it to the command, too
run() {
  child=
  "$@" &
  child=$!
  [ -z "$asked" ] || end_child  # the signal came a moment earlier
  while :; do
    interrupted=
    wait "$child"
    local status=$?
    [ -n "$interrupted" ] || return "$status"
  done
}

for ((start = 0; ; start++)); do
  look
  began=$newest before=$aside
  run "$@"
  status=$?
  case $status in
    75 | 134 | 137 | 143) ;;
    *) exit "$status" ;;
  esac
  # Whoever asked for the end knows why; that it came early is no fault.
  [ -z "$asked" ] || exit 75
  look
  # Without the damaged one it began with it began at an older step.
  if ((newest <= began && aside == before)); then
    echo "error: ended with $status before the first checkpoint after step" \
      "$began; not started again" >&2
    exit 1
  fi
  ((start < times)) || exit 75
  echo "ended with $status at step $newest; start $((start + 2)) of" \
    "$((times + 1))" >&2
done
