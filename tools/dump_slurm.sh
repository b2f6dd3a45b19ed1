#!/bin/bash
# Dump a teacher cache as a Slurm job array, each task a machine with all of its GPUs:
#
#   sbatch --array=0-15 tools/dump_slurm.sh configs/distill/r50_2x_from_r101_1x.yaml [KEY VALUE ...]
#
# Submit it from the project's folder; CACHE.LOCATION must be seen by every machine (a shared file
# system, or s3://bucket/prefix with its credentials in the environment). The tasks need not run
# at the same time, nor all of them ever: whoever runs takes what is left. A task that is preempted
# or runs out of time gives its shards back, and goes on when it is requeued.
#
#   python -m stage1_dump status CACHE      how far all of them are, from any machine
#
#SBATCH --job-name=teacher-cache
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

config=${1:?usage: sbatch --array=0-15 tools/dump_slurm.sh CONFIG [KEY VALUE ...]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
if [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
exec srun python -m stage1_dump run --num-gpus "${SLURM_GPUS_ON_NODE:-1}" \
    --config-file "$config" "$@"
