#!/usr/bin/env bash
# Trains on this machine: launch/local.sh CONFIG [FLAG ...]
#
#   launch/local.sh configs/unet.py --config.num_steps=100
#
# Goes on by itself after a crash or a reboot when run again: training resumes
# from the newest checkpoint of the same --workdir.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: launch/local.sh CONFIG [FLAG ...]" >&2
  exit 1
fi
config=$1
shift
exec python -m medseg_jax.main --config="$config" "$@"
