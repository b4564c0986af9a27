#!/usr/bin/env bash
# One run on one machine or on many, started again by torchrun when a process or a machine is lost:
#
#   NPROC=2 launch/torchrun.sh digits
#   NODES=2 NODE=0 HEAD=10.77.0.1:29500 NPROC=8 launch/torchrun.sh digits --output /shared/runs/digits
#
# The second line is given on every machine, with its own NODE. To edit, here or in the environment:
#   NPROC      processes on each machine, one for each GPU
#   NODES      machines
#   MIN_NODES  fewest machines that the run goes on with when others are lost for good; as many as NODES
#   NODE       number of this machine, from 0
#   HEAD       an address and a free port of machine 0 that all machines can reach
#   ADDRESS    this machine's own address, where its host name is not one that the others can reach
#   RESTARTS   how often to start again; the processes go on from the last checkpoint
# The run folder and the teacher's file have to be on a file system that all machines share.
set -euo pipefail

NPROC=${NPROC:-2}
NODES=${NODES:-1}
MIN_NODES=${MIN_NODES:-$NODES}
RESTARTS=${RESTARTS:-3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
# A store for each start: in the one that torchrun keeps for all of them, processes find the addresses of those before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Seconds between SIGTERM and SIGKILL: for the round to end and the checkpoint to be written.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}

if [ "$NODES" -eq 1 ]; then
    meeting=(--standalone)
else
    # Machine 0 keeps the store in which all meet. torchrun would find out by comparing names, which fails where a
    # machine has several addresses.
    meeting=(--nnodes "$MIN_NODES:$NODES" --rdzv-backend c10d --rdzv-id "${RUN_ID:-ddad}" --rdzv-endpoint "$HEAD"
             --rdzv-conf "is_host=$([ "$NODE" -eq 0 ] && echo 1 || echo 0),last_call_timeout=${LAST_CALL:-30}"
             ${ADDRESS:+--local-addr "$ADDRESS"})
fi

exec torchrun "${meeting[@]}" --nproc-per-node "$NPROC" --max-restarts "$RESTARTS" -m harness distill "$@" \
    distributed.world_size=$((NODES * NPROC)) distributed.min_world_size=$((MIN_NODES * NPROC))
