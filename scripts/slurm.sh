#!/usr/bin/env bash
# Several machines under Slurm: sbatch scripts/slurm.sh (from the project's folder; adapt the lines
# below). The same submission again goes on where the last one stopped.
#SBATCH --job-name=mamba-v2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

export NNODES=$SLURM_NNODES NPROC=4 FOREGROUND=1
export RDZV_ENDPOINT="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500"
export RDZV_ID=$SLURM_JOB_ID BATCH_SIZE=512

# One runner on each machine, each with a log of its own; only the first process writes checkpoints.
srun bash -c 'LOG=training_v2_output.$SLURM_NODEID.log exec ./run_mamba_v2_training.sh'
