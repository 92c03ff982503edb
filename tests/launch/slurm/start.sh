#!/usr/bin/env bash
# Starts a SLURM of one node, this machine, whose files all lie in FOLDER; needs root.
#   start.sh FOLDER     then: SLURM_CONF=FOLDER/slurm.conf sbatch ...
#   stop.sh FOLDER      ends what was started
# Two partitions: a job in `urgent` pre-empts one in `normal`, which is then requeued. Installs the
# distribution's packages (Debian, Ubuntu) where they are missing.
set -euo pipefail
folder=$(realpath -m "${1:?usage: start.sh FOLDER}")
[ "$(id -u)" = 0 ] || { echo "start.sh: SLURM's daemons are started as root, and this is $(id -un): run it as root" >&2; exit 1; }
export PATH="$PATH:/usr/sbin:/sbin"
if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
  command -v apt-get >/dev/null || { echo "start.sh: install slurmctld, slurmd, sbatch and munged; there is no apt-get to do it" >&2; exit 1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurmctld slurmd slurm-client munge >/dev/null
fi

mkdir -p "$folder"/{state,spool}
chmod 755 "$folder"
read -r controller_port node_port < <(python3 - <<'PYTHON'
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in held))
PYTHON
)
host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# No cgroups here: processes are found by their parents, and nothing is bound to cores.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,preempt_youngest_first
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=9
CONF

( umask 077; head -c 1024 /dev/urandom >"$folder/munge.key" )
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
export SLURM_CONF="$folder/slurm.conf"
slurmctld -c
slurmd
for _ in $(seq 60); do
  [ "$(sinfo --noheader --partition=normal --format=%T 2>/dev/null)" = idle ] && exit 0
  sleep 0.5
done
echo "start.sh: the node is not idle after 30 s; see $folder/slurmctld.log and slurmd.log" >&2
tail -n 20 "$folder"/*.log >&2
exit 1
