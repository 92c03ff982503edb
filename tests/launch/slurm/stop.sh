#!/usr/bin/env bash
# Ends the daemons that start.sh FOLDER started, and no others.
set -uo pipefail
folder=$(realpath -m "${1:?usage: stop.sh FOLDER}")
for daemon in slurmd slurmctld munged; do
  [ -f "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" 2>/dev/null
done
exit 0
