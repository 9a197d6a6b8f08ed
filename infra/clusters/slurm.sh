#!/usr/bin/env bash
# One job of jobs/ on a Ray cluster of its own within a Slurm allocation, submitted in the checkout:
#
#   sbatch infra/clusters/slurm.sh jobs/train_unet.py --data s3://studies/brats --storage s3://studies/runs --run-name first
#
# The nodes need a Python with the dependencies, first in PATH, and the bucket's and MLflow's variables, which `sbatch` passes
# on. Where Slurm ends the job, or starts it again, the same --run-name resumes. Only processes of this job are ended.
#SBATCH --job-name=glioray
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

fail() {
  printf 'slurm.sh: %s\n' "$*" >&2
  exit 1
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "there is no allocation; submit this script by sbatch"
[ $# -gt 0 ] || fail "no job was given; write a script of jobs/ and its flags after slurm.sh"
cd "${SLURM_SUBMIT_DIR:-.}"
[ -f "$1" ] || fail "there is no $1 in $PWD; submit in the checkout"

# Nodes may be shared: ports of this job alone, below those that the system gives to outgoing connections.
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
dashboard=$((port + 1))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# This script runs on the first node.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')

# A token that only this user can read; nodes share the home.
umask 077
mkdir -p "$HOME/.ray"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/token-$SLURM_JOB_ID"
# A short path, as sockets need, and one for each job of a node.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID" RAY_USAGE_STATS_ENABLED=0
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH"

steps=()
finish() {
  trap - EXIT TERM INT
  # Each srun passes the signal on to its own processes; the head goes last.
  for ((i = ${#steps[@]} - 1; i >= 0; i--)); do
    kill -TERM "${steps[i]}" 2>/dev/null || true
    wait "${steps[i]}" 2>/dev/null || true
  done
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT
trap 'exit 143' TERM INT

start() {
  local count=$1 where=$2
  shift 2
  srun --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --nodelist="$where" --kill-on-bad-exit=0 \
    ray start --block --num-cpus="${SLURM_CPUS_PER_TASK:-1}" "$@" &
  steps+=($!)
}

start 1 "${nodes[0]}" --head --node-ip-address="$head_ip" --port="$port" \
  --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
others=("${nodes[@]:1}")
if [ ${#others[@]} -gt 0 ]; then
  start ${#others[@]} "$(IFS=,; echo "${others[*]}")" --address="$head_ip:$port"
fi

export RAY_API_SERVER_ADDRESS="http://127.0.0.1:$dashboard"
for ((waited = 0; ; waited += 5)); do
  # One line of JSON for all nodes.
  alive=$(ray list nodes --address "$RAY_API_SERVER_ADDRESS" --filter state=ALIVE --format json 2>/dev/null |
    grep -o '"node_id"' | wc -l || true)
  [ "$alive" -lt ${#nodes[@]} ] || break
  kill -0 "${steps[0]}" 2>/dev/null || fail "the head of the Ray cluster ended; see above"
  [ "$waited" -lt 300 ] || fail "$alive of ${#nodes[@]} nodes joined the Ray cluster within 300 s; see above"
  sleep 5
done

# In the background, so that a signal is handled at once.
ray job submit --working-dir . -- python "$@" &
steps+=($!)
wait "${steps[-1]}"
