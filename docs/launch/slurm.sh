#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8   # one task for each GPU
#SBATCH --gpus-per-node=8     # not --gpus-per-task: JAX picks a task's GPU among all of its node
#SBATCH --signal=TERM@120     # seconds before the time limit: each task saves and ends
#SBATCH --requeue

srun --kill-on-bad-exit=0 python train.py "$@"
status=$?
# 75: saved, but not finished. The same job goes on from there.
test $status -ne 75 || scontrol requeue "$SLURM_JOB_ID"
exit $status
