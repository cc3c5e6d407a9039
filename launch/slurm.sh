#!/usr/bin/env bash
#SBATCH --job-name=medseg
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt
# One training on several nodes of a Slurm cluster, from this folder's parent:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/auto.py --workdir=/disk/of/all/runs/auto
#
# A task for each node has all of its GPUs; --ntasks-per-node=8 makes it one for
# each GPU. Options of sbatch win over those above; what they are for:
# --signal      two minutes before the time is up all tasks save and end
# --requeue     where Slurm finds a lost node before the program does
# --open-mode   one log for all starts
set -uo pipefail
restarts=20  # at most
unable=100   # of srun: its tasks could not be started, or got out of reach

# Sums on CPU depend on the number of threads, which is alike everywhere and in
# every start then.
export NPROC="${NPROC:-$SLURM_CPUS_PER_TASK}"
export SLURM_EXIT_ERROR=$unable
# No --kill-on-bad-exit: the tasks end each other, and say why. Those that
# cannot are ended half a minute after the first.
launch/again.sh 0 \
  srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=30 \
  python -m medseg_jax.main "$@"
status=$?
if ((status == 75 || status == unable)) &&
  ((${SLURM_RESTART_COUNT:-0} < restarts)); then
  echo "ended with $status; requeued"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
