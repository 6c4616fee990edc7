#!/bin/bash
# A search on several nodes: task 0 of the array is the chief, the others are the workers.
#
#     sbatch examples/cluster/slurm.sh search.py --epochs 20
#
# The script is the one that runs alone; its folder must be on a file system that all nodes see. So
# must SEARCH_SHARED (default: where sbatch was called), through which the chief says where it is.
# Whatever dies is started again, here or (a node is lost) by Slurm (--requeue), under the same
# task and so under the same id: nothing that was trained is trained twice. The same command once
# more goes on with a search that ran out of time, not before the first one has left the queue.
# The chief takes no password: let only people you trust reach its port.
#
#SBATCH --job-name=search
#SBATCH --array=0-4
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
shared=${SEARCH_SHARED:-$SLURM_SUBMIT_DIR}
meeting=$shared/chief-$SLURM_ARRAY_JOB_ID
pause=${SEARCH_PAUSE:-10} # seconds
port=$((20000 + SLURM_ARRAY_JOB_ID % 20000))

chief() {
    # Written aside and moved, so that nobody reads half of it. A chief on another node writes anew.
    echo "${SLURMD_NODENAME:-$(hostname)}:$port" >"$meeting.new" && mv "$meeting.new" "$meeting"
    python -m keras_gates.tuning chief --address "0.0.0.0:$port" \
        --workers "$SLURM_ARRAY_TASK_MAX" "$@"
}

worker() {
    until [ -s "$meeting" ]; do sleep "$pause"; done
    # After five minutes without the chief, ask again where it is.
    python -m keras_gates.tuning worker --address "$(cat "$meeting")" \
        --id $((SLURM_ARRAY_TASK_ID - 1)) --patience 300 "$@"
}

role=worker
[ "$SLURM_ARRAY_TASK_ID" -eq 0 ] && role=chief
for _ in $(seq 20); do
    $role "$@" && exit 0
    sleep "$pause"
done
echo "Given up after 20 attempts." >&2
exit 1
