#!/bin/bash
# fitune on two machines of eight GPUs each: sbatch recipes/clusters/slurm.sh recipe.yaml NAME
# The folder that you submit from, with its .venv, the data and the runs, must be on a disk that all machines share.
#SBATCH --job-name=fitune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
# Slurm's SIGTERM, five minutes before the end, has fitune write a checkpoint; `train --resume runs/NAME` continues.
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280
srun .venv/bin/torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  -m fitune.cli train "$1" --run.name "$2"
