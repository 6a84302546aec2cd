#!/bin/bash
# A Ray cluster inside one allocation, for the grid and for nothing else: sbatch slurm/ray.sh [GRID] [RUN]
#
# GRID is a preset or a TOML file (paper: 150 trials), RUN the run folder (runs/GRID), on a file system that all nodes
# share. Set the partition and the account below. Submit it again whenever you like: it runs what is missing.
#
# The head and the launch run on the first node. A raylet that dies is started again. Where the head dies, a node fails
# or the time limit is near, the job is requeued and goes on from the last epoch of each trial. Ray listens on every
# interface and runs code for whoever reaches it, which is why all its processes ask for a token that is made for this
# job; its address is the one by which SLURM knows the node, or that of the interface $STDAC_INTERFACE (ib0, say).
#
##SBATCH --partition=gpu
##SBATCH --account=my-account
#SBATCH --job-name=stdac-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=2000M
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR2@120
#SBATCH --output=stdac-ray-%j.log
set -euo pipefail

requeues=100  # of this job, after which a head that dies once more ends it
grid=${1:-paper}
name=${grid##*/}
run=${2:-runs/${name%.toml}}

# stdac-grid: of the environment at $STDAC_VENV, of the PATH, or of the .venv in the folder that sbatch was called from
if [ -n "${STDAC_VENV:-}" ]; then
  source "$STDAC_VENV/bin/activate"
elif ! command -v stdac-grid >/dev/null && [ -x .venv/bin/stdac-grid ]; then
  source .venv/bin/activate
fi
command -v stdac-grid ray >/dev/null || {
  echo "stdac-grid and ray were not found: install stdac, call sbatch where its .venv is, or set STDAC_VENV" >&2
  exit 1
}

# The address of this node on the cluster's interface.
address() {
  if [ -n "${STDAC_INTERFACE:-}" ]; then
    ip -4 -o address show dev "$STDAC_INTERFACE" | awk '{ split($4, part, "/"); print part[1]; exit }'
  else
    getent ahostsv4 "$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')" |
      awk '{ print $1; exit }'
  fi
}

# Be a Ray node, for as long as it lives.
node() {
  exec ray start "$@" --block --node-ip-address="$(address)" --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats \
    >>"$STDAC_LOGS/ray-$SLURM_JOB_ID-$SLURMD_NODENAME.log" 2>&1
}

# End a node: politely, then for good.
end() {
  kill -TERM "$1"
  for _ in $(seq 40); do
    kill -0 "$1" || break
    sleep 0.1
  done
  kill -KILL "$1"
  wait
  rm -rf "$RAY_TMPDIR"
} 2>/dev/null

# Be a node that joins the head, again and again; srun starts this on each of the other nodes.
join() {
  trap 'end "$raylet"; exit 0' TERM
  while true; do
    node --address="$STDAC_HEAD" &
    raylet=$!
    wait "$raylet" || sleep 5
  done
}
export -f address node end join

mkdir -p "$run/logs"
run=$(realpath "$run")
export STDAC_LOGS=$run/logs OMP_NUM_THREADS=1
export RAY_TMPDIR=/tmp/stdac-ray-$SLURM_JOB_ID RAY_enable_metrics_collection=0
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
STDAC_HEAD=$(address):$((20000 + SLURM_JOB_ID % 10000))
export STDAC_HEAD RAY_AUTH_TOKEN RAY_AUTH_MODE=token

# Whether the head answers.
answers() { (exec 3<>"/dev/tcp/${STDAC_HEAD/:/\/}") 2>/dev/null; }

# End all, on every node.
finish() {
  trap '' USR2 TERM
  kill -INT "$launch" 2>/dev/null && wait "$launch"
  if [ -n "${others:-}" ]; then
    scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null # the tasks, not srun, which would not let them tidy up
    for _ in $(seq 50); do kill -0 "$others" 2>/dev/null && sleep 0.1; done
    kill -TERM "$others" 2>/dev/null
  fi
  end "${head:-}"
}
trap 'set +e; finish' EXIT
trap 'exit 143' TERM
again=
launch=
trap 'again="the time limit is near"; kill -INT "$launch" 2>/dev/null || true' USR2

node --head --port="${STDAC_HEAD##*:}" --include-dashboard=false &
head=$!
until answers; do
  kill -0 "$head" || exit 1
  sleep 0.5
done

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --overlap --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" --exclude="$SLURMD_NODENAME" \
    --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) bash -c join &
  others=$!
fi

# in a process group of its own, so that it may be interrupted
set -m
RAY_ADDRESS=$STDAC_HEAD stdac-grid launch "$grid" --out "$run" --backend ray --nodes "$SLURM_JOB_NUM_NODES" \
  --trials-per-gpu "${STDAC_TRIALS_PER_GPU:-1}" --yes &
launch=$!
set +m
[ -z "$again" ] || kill -INT "$launch" || true
code=0
wait "$launch" || code=$?
while kill -0 "$launch" 2>/dev/null; do # a signal ends the first wait
  wait "$launch" && code=0 || code=$?
done

if [ -z "$again" ] && ! answers && [ "${SLURM_RESTART_COUNT:-0}" -lt "$requeues" ]; then
  again="the Ray head is gone"
fi
if [ -n "$again" ] && [ "$code" -ne 0 ]; then
  echo "$again: the job is requeued and goes on"
  set +e
  finish
  trap - EXIT
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
