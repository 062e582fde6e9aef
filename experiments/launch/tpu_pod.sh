#!/bin/bash
# A run on all hosts of a Cloud TPU slice: one process a host, which find each other by the slice's metadata.
#
#     NAME=my-slice ZONE=us-east5-a experiments/launch/tpu_pod.sh digits --out /mnt/shared/digits/large
#
# The checkout must be at ~/gft_jax on every host, installed with jax[tpu], and --out on storage that all of them mount.
# Arguments are those of experiments.train; give --resume to continue after a preemption.

set -euo pipefail

: "${NAME:?set NAME, the name of the TPU slice}" "${ZONE:?set ZONE, its zone}"

# Quoted once more: the hosts' shells take it apart again.
arguments=$(printf '%q ' "$@")

gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all \
  --command "cd ~/gft_jax && python -m experiments.train $arguments --distributed --parallel sharded"
