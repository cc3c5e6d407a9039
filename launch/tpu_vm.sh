#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU, from a machine that has gcloud:
#
#   launch/tpu_vm.sh NAME ZONE --config=configs/auto.py \
#     --workdir=/disk/of/all/runs/auto
#
# Needed on each host: this repository in ~/medseg_jax, installed as BUILD.md
# says, and a disk that all share. Each host starts its process again as
# launch/again.sh says. To stop: the same command with `stop` in place of the
# flags; all save and end.
#
# The hosts learn from the TPU who they are, and are all alike, so neither
# addresses nor NPROC need to be set.
set -euo pipefail
if (($# < 3)); then
  echo "usage: launch/tpu_vm.sh NAME ZONE FLAG ... | stop" >&2
  exit 1
fi
name=$1 zone=$2
shift 2
if [ "$*" = stop ]; then
  # To again.sh, which passes it on and starts nothing again.
  command='pkill -TERM -f "^bash launch/again.sh"'
else
  command='cd ~/medseg_jax && exec launch/again.sh 20 '
  command+="python3 -m medseg_jax.main$(printf ' %q' "$@")"
fi
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command"
