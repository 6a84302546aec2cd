#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=2
#SBATCH --gres=gpu:1
#SBATCH --job-name=stdac-paper-0a1b2c
#SBATCH --mem-per-cpu=2000M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/my runs/paper/logs/slurm/%A_%a_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
[ -e '/shared/my runs/paper/logs/slurm/probe-1' ] || exit 66
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/my runs/paper/logs/slurm/%A_%a_%t_log.out' --open-mode=append --export=ALL /env/bin/python -u -m submitit.core._submit '/shared/my runs/paper/logs/slurm'
