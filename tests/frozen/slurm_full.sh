#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-0%1
#SBATCH --constraint='a100&ib'
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:2
#SBATCH --job-name=stdac-paper-0a1b2c
#SBATCH --mem-per-cpu=4G
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/my runs/paper/logs/slurm/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --reservation=friday
#SBATCH --signal=USR2@30
#SBATCH --time=2

# setup
[ -e '/shared/my runs/paper/logs/slurm/probe-1' ] || exit 66
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/my runs/paper/logs/slurm/%A_%a_%t_log.out' --open-mode=append --export=ALL /env/bin/python -u -m submitit.core._submit '/shared/my runs/paper/logs/slurm'
