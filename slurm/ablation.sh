#!/bin/bash
# The ablation on a SLURM cluster, with no driver: sbatch slurm/ablation.sh [GRID] [RUN]
#
# GRID is a preset or a TOML file (paper: 150 trials), RUN the run folder (runs/GRID), on a file system that all nodes
# share. Set the partition and the account below. Submit it again whenever you like: it runs what is missing.
# SLURM may send the signal a minute early: with a --time of a few minutes ask for --signal=B:USR2@30.
#
##SBATCH --partition=gpu
##SBATCH --account=my-account
#SBATCH --job-name=stdac-ablation
#SBATCH --array=0-3
#SBATCH --time=4:00:00
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=2000M
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR2@120
#SBATCH --output=stdac-ablation-%A_%a.log
set -euo pipefail

grid=${1:-paper}
name=${grid##*/}
run=${2:-runs/${name%.toml}}

# stdac-grid: of the environment at $STDAC_VENV, of the PATH, or of the .venv in the folder that sbatch was called from
if [ -n "${STDAC_VENV:-}" ]; then
  source "$STDAC_VENV/bin/activate"
elif ! command -v stdac-grid >/dev/null && [ -x .venv/bin/stdac-grid ]; then
  source .venv/bin/activate
fi
command -v stdac-grid >/dev/null || {
  echo "stdac-grid was not found: install stdac, call sbatch where its .venv is, or set STDAC_VENV" >&2
  exit 1
}

# exec: in place of this shell, so that the signal before the time limit reaches it. At the next checkpoint, at the latest
# when the grace is over, it stops its trials and requeues the job, which goes on from there. One thread, as in a launch:
# their number shows in the last digits of what a CPU computes.
trap '' USR2  # until then
exec stdac-grid work "$run" --grid "$grid" --workers "${STDAC_TRIALS_PER_GPU:-1}" --threads 1 --grace 90
