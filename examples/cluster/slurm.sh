#!/bin/bash
# A search on several nodes: each task of the array is a worker.
#
#     sbatch examples/cluster/slurm.sh search.py --epochs 20
#
# The script is the one that runs alone; its folder must be on a file system that all nodes see.
# Whatever dies is started again, here or (a node is lost) by Slurm (--requeue), under the same
# task and so under the same id: nothing that was trained is trained twice. The same command once
# more goes on with a search that ran out of time, not before the first one has left the queue.
#
#SBATCH --job-name=search
#SBATCH --array=0-3
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
for _ in $(seq 20); do
    keras-gates search --worker "$SLURM_ARRAY_TASK_ID" \
        --workers "$SLURM_ARRAY_TASK_COUNT" "$@" && exit 0
    sleep "${SEARCH_PAUSE:-10}" # seconds
done
echo "Given up after 20 attempts." >&2
exit 1
