#!/bin/bash
# A run of several processes on this machine, without any scheduler: to try out what a cluster does.
#
#     NUM_PROCESSES=2 experiments/launch/processes.sh digits --out runs/digits/two --parallel pmap
#
# Elsewhere, start the same command on every host, with the address of the first for --coordinator. On CPUs each process
# has as many devices as XLA_FLAGS=--xla_force_host_platform_device_count=N says, and NPROC, its threads, must be at
# least twice as many, or the devices wait for each other for ever.

set -euo pipefail

count=${NUM_PROCESSES:-2}
port=${PORT:-12345}
export NPROC=${NPROC:-16}

# Each process in a group of its own: a signal to all of them reaches them once, by the trap; the second would kill.
set -m
pids=()
for ((process = 0; process < count; process++)); do
  python -m experiments.train "$@" --coordinator "127.0.0.1:$port" --num-processes "$count" --process-id "$process" &
  pids+=($!)
done

# On SIGTERM, and when interrupted, all of them save and end.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
status=0
for pid in "${pids[@]}"; do
  while true; do
    wait "$pid" && code=0 || code=$?
    # A signal ends the wait before the process.
    kill -0 "$pid" 2>/dev/null || break
  done
  [[ $code -eq 0 ]] || status=$code
done
exit "$status"
