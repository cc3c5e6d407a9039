#!/usr/bin/env bash
# Checks in under ten minutes that the whole program runs on this machine's GPU
# or TPU, and fills the rows of benchmarks/README.md.
#
#   benchmarks/accelerator.sh [FOLDER]          # default: runs/accelerator
#
# Prints what it finds as it goes, at the end the table's lines, and writes
# FOLDER/accelerator.json, with accelerator.log beside it. A part that fails, or
# that lacks a library, is told, and the others go on; the exit status is 1 where
# one failed. benchmarks/accelerator.py has the parts.
#
#   PYTHON          the interpreter that has jax; default: python3
#   TORCH_PYTHON    the one that has torch; default: the same
#   MEDSEG_WHEELS   folder of wheels, all of which are installed, without any
#                   network, into a folder for this run alone
#   MEDSEG_SIZE     full or small; default: small where there is only a CPU
#   MEDSEG_PARTS    only these parts, with commas between
#   MEDSEG_SECONDS  after which no other part begins; default: 560
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-runs/accelerator}"
out=$(cd "${1:-runs/accelerator}" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

if [ -n "${MEDSEG_WHEELS:-}" ]; then
  if "$python" -m pip install --quiet --no-index --no-deps --no-compile \
      --target "$work/packages" "$MEDSEG_WHEELS"/*.whl; then
    export PYTHONPATH="$work/packages:$PYTHONPATH"
  else
    echo "accelerator.sh: the wheels of $MEDSEG_WHEELS were not installed" >&2
  fi
fi

status=0
"$python" "$root/benchmarks/accelerator.py" --out="$out" --work="$work" \
  --torch-python="${TORCH_PYTHON:-$python}" --size="${MEDSEG_SIZE:-}" \
  --parts="${MEDSEG_PARTS:-}" --seconds="${MEDSEG_SECONDS:-560}" || status=$?
exit "$status"
