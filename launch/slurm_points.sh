#!/bin/bash
@directives@
# Made by `rfjax launch`: each task of this array trains and evaluates one point, from where it stands.
case "${SLURM_ARRAY_TASK_ID:?this script is for sbatch --array}" in
@cases@
*) echo "no point has the array index $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
# Never by $SLURM_JOB_ID: one task of an array has the array's own number, which names all of them.
task="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
# Told to stop, by SLURM before the time limit or by a user's `scancel --signal=TERM --batch`: the
# signal goes to the processes on every node, which save and exit with @preempted@; srun, sent it, would
# kill them. Before there are any, the task just goes back.
told=
trap 'told=yes; scancel --signal=TERM "$task" 2>/dev/null' TERM
@setup@
set -u
echo "$(date -Is) point $SLURM_ARRAY_TASK_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${command[*]}"
[ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # not handed on since SLURM 22.05
status=143
if [ -z "$told" ]; then
  srun --wait=@grace@ "${command[@]}" &
  step=$!
  wait "$step"; status=$?
  while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done  # a trap ends a wait early
fi
case "$status" in
0 | @hopeless@) exit "$status" ;;
@preempted@ | 143) told=yes ;;  # 143: before it could save
esac
# RUNNING: nobody has cancelled or requeued it meanwhile.
if [ -n "$told" ] && [ "$(squeue --noheader --job="$task" --format=%T)" = RUNNING ]; then
  echo "$(date -Is) told to stop (status $status): back into the queue"
  trap '' TERM
  scontrol requeue "$task"
fi
exit "$status"
