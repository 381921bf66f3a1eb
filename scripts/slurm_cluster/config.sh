# Sourced by up.sh: writes the cluster's configuration.
# shellcheck shell=bash

# Loopback only; possible where the host's own name resolves to it, since slurmctld and srun bind to
# the address of that name. Else the daemons listen on all interfaces, as SLURM does by default.
binding() {
    if [[ $(getent ahostsv4 "$(hostname -s)" | awk 'NR == 1 {print $1}') == 127.0.0.1 ]]; then
        echo CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
    else
        say "warning: $(hostname -s) does not resolve to 127.0.0.1; the daemons listen on all interfaces"
    fi
}

free_port() { # number of ports: prints the first of a free range, below the ephemeral ones
    local start try port hash
    hash=$(cksum <<<"$B")
    for try in {0..200}; do
        start=$((20000 + 40 * ((${hash%% *} + try) % 300)))
        for ((port = start; port < start + $1; port++)); do
            ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue 2
        done
        echo "$start"
        return
    done
    say "no free ports"
    exit 4
}

write_gres() { # gres.conf; a GPU must be a character device by stat(), which a link to one will do
    local node gpu
    : >"$B/etc/gres.conf"
    for ((node = 1; node <= NODES; node++)); do
        mkdir -p "$B/dev/n$node"
        for ((gpu = 0; gpu < GPUS; gpu++)); do
            ln -sfn /dev/null "$B/dev/n$node/gpu$gpu"
            echo "NodeName=n$node Name=gpu File=$B/dev/n$node/gpu$gpu" >>"$B/etc/gres.conf"
        done
    done
}

write_hosts() { # what the nodes see as /etc/hosts, where they have a mount namespace
    local node
    echo "127.0.0.1 localhost $(hostname -s)" >"$B/etc/hosts"
    for ((node = 1; node <= NODES; node++)); do
        echo "127.0.0.1 n$node" >>"$B/etc/hosts"
    done
}

accounting_lines() {
    if [[ $LAB_DBD == 0 ]]; then
        echo AccountingStorageType=accounting_storage/none
        echo JobAcctGatherType=jobacct_gather/none
        return
    fi
    cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + NODES + 1))
AccountingStoragePass=$B/run/munge.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
CONF
}

range() { # first, count: a range as SLURM writes it
    if (($2 == 1)); then echo "$1"; else echo "[$1-$(($1 + $2 - 1))]"; fi
}

# cred_expire is also what a requeued job waits, plus a second. MinJobAge keeps ended jobs where
# scontrol finds them. pgid: cgroups need more rights than tests have.
write_slurm_conf() {
    local user gres=
    user=$(id -un)
    ((GPUS == 0)) || gres=Gres=gpu:$GPUS
    cat >"$B/etc/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$B/run/munge.sock,cred_expire=$LAB_REQUEUEWAIT
CredType=cred/munge
$(binding)
StateSaveLocation=$B/state
SlurmdSpoolDir=$B/spool/%n
SlurmctldPidFile=$B/run/slurmctld.pid
SlurmdPidFile=$B/run/slurmd-%n.pid
SlurmctldLogFile=$B/log/slurmctld.log
SlurmdLogFile=$B/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=$LAB_PROCTRACK
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_interval=2
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$(accounting_lines)
JobCompType=jobcomp/filetxt
JobCompLoc=$B/log/jobcomp.log
KillWait=$LAB_KILLWAIT
OverTimeLimit=0
SlurmdTimeout=$LAB_SLURMDTIMEOUT
SlurmctldTimeout=10
MessageTimeout=$LAB_MSGTIMEOUT
BatchStartTimeout=10
CompleteWait=0
InactiveLimit=0
WaitTime=0
MinJobAge=3600
JobRequeue=1
NodeName=n$(range 1 "$NODES") NodeHostname=localhost NodeAddr=127.0.0.1 Port=$(range $((PORT + 1)) "$NODES") CPUs=$LAB_CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$LAB_CPUS ThreadsPerCore=1 RealMemory=$LAB_MEM $gres State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=low  Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=$LAB_GRACE MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=lowc Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=$LAB_GRACE MaxTime=INFINITE DefaultTime=60 State=UP
CONF
    [[ -z ${LAB_EXTRA:-} ]] || cat "$LAB_EXTRA" >>"$B/etc/slurm.conf"
}
