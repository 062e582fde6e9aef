#!/bin/bash
# A run on several nodes under SLURM: one process for each GPU, which find each other by SLURM's environment.
#
#     sbatch experiments/launch/slurm.sh digits /shared/runs/large --batch-size 1024
#
# The experiment, its folder, which all nodes must see, and further flags of experiments.train. The same command
# continues a run that was begun. One process a GPU is what JAX expects under SLURM: with fewer, GPUs stay idle. --fsdp 8
# splits parameters over the eight GPUs of a node, which are consecutive, and copies them between nodes.

#SBATCH --job-name=gft_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# SIGTERM five minutes before the time is up: the run saves and ends.
#SBATCH --signal=TERM@300
# After a preemption, or when a node was lost, SLURM queues the job again.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

experiment=$1 out=$2
shift 2

resume=()
if [[ -e $out/config.json ]]; then
  resume=(--resume)
fi

# When one process ends with an error there is nothing left to do for the others.
status=0
srun --kill-on-bad-exit=1 python -m experiments.train "$experiment" --out "$out" --distributed \
  --parallel sharded --fsdp 8 "$@" "${resume[@]}" || status=$?

# 75: ended by SIGTERM, with all of it saved.
if [[ $status -eq 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
