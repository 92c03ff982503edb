#!/usr/bin/env bash
# Made by `rfjax launch`: one queued resource a point, all at once; each is asked for again when it is
# pre-empted, and given back when its point has ended. Keep it running, in tmux say. Started again, it
# goes on with the slices that are there and the points' newest checkpoints.
set -uo pipefail
place=(@place@)
config=@config@
logs=@logs@
pause="${RFJAX_LAUNCH_PAUSE:-60}"  # seconds between two looks
tries=5                            # at what fails though the slice is there

state_of() { gcloud compute tpus queued-resources describe "$1" "${place[@]}" --format='value(state.state)' 2>/dev/null; }
give_back() { gcloud compute tpus queued-resources delete "$1" "${place[@]}" --force --quiet; }

# run_task NAME ACCELERATOR_TYPE SLICES WORKERS COMMAND: its exit status is the command's.
run_task() {
  local name=$1 type=$2 slices=$3 workers=$4 command=$5 failures=0 status=1 began
  local node=(--node-id="$name") machines=tpu-vm all=()
  [ "$slices" = 1 ] || { node=(--node-count="$slices" --node-prefix="$name"); machines=queued-resources; all=(--node=all); }
  while [ "$failures" -lt "$tries" ]; do
    case "$(state_of "$name")" in
    "")
      echo "$(date -Is) $name: asking for $slices of $type"
      gcloud compute tpus queued-resources create "$name" "${node[@]}" --accelerator-type="$type" "${place[@]}" @create@ || failures=$((failures + 1))
      ;;
    FAILED | SUSPENDED)
      echo "$(date -Is) $name: the slice is gone"
      give_back "$name" || failures=$((failures + 1))
      ;;
    ACTIVE)
      began=$SECONDS
      # All at once: each process waits for all others.
      gcloud compute tpus "$machines" scp "$config" "$name": --worker=all "${all[@]}" "${place[@]}" &&
        gcloud compute tpus "$machines" ssh "$name" --worker="$workers" --batch-size=all "${all[@]}" "${place[@]}" --command="$command"
      status=$?
      echo "$(date -Is) $name: ended with status $status"
      [ $((SECONDS - began)) -lt 3600 ] || failures=0
      case "$status" in
      0 | @hopeless@) break ;;
      @preempted@) ;;
      *) [ "$(state_of "$name")" != ACTIVE ] || failures=$((failures + 1)) ;;
      esac
      ;;
    esac
    sleep "$pause"
  done
  give_back "$name" || echo "$(date -Is) $name: NOT GIVEN BACK, and it costs money: gcloud compute tpus queued-resources delete $name ${place[*]} --force" >&2
  return "$status"
}

names=(@names@)
declare -A running
start() {
  run_task "$@" >"$logs/$1.log" 2>&1 &
  running[$!]=$1
}
failed=0
finish() {
  local process status
  for process in "${!running[@]}"; do
    wait "$process"; status=$?
    echo "$(date -Is) ${running[$process]}: status $status; its output is in $logs/${running[$process]}.log"
    unset "running[$process]"
    [ "$status" = 0 ] || failed=1
  done
}
left() {
  trap - INT TERM
  for process in "${!running[@]}"; do kill -- "-$process" 2>/dev/null; done
  echo "stopped; what of ${names[*]} was created still costs money. This script again goes on with it;" \
    "gcloud compute tpus queued-resources delete NAME ${place[*]} --force gives one back" >&2
  exit 143
}
trap left INT TERM
set -m  # each task a process group, which ends as one

@tasks@
finish
@collect@
finish
tail -n 40 "$logs/${names[-1]}.log"
exit "$failed"
