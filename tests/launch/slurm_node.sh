# A single-node Slurm of this test's own: daemons, keys, sockets and ports in a private directory. To be sourced.
#   start_slurm DIR SLURM_ROOT    exports SLURM_CONF; returns 1 with the reason in $slurm_reason
#   stop_slurm                    ends the daemons; call it on every exit
slurm_reason="" slurm_pids=()

free_port() {  # a TCP port of the loopback interface that nothing listens on
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  return 1
}

slurm_fails() {
  slurm_reason="$1; last words: $(tail -q -n 2 "$dir"/*.log 2>/dev/null | tr '\n' ' ')"
  return 1
}

start_slurm() {
  dir=$1
  local root=$2 host user program plugins=/usr/lib/x86_64-linux-gnu/slurm-wlm libraries
  if [[ -e $root/complete ]]; then
    plugins=$root$plugins
    libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu:$plugins
    export LD_LIBRARY_PATH=$libraries PATH=$root/usr/bin:$root/usr/sbin:$PATH
  fi
  for program in munged slurmctld slurmd slurmstepd srun sbatch scontrol; do
    command -v $program >/dev/null || { slurm_reason="$program is not installed"; return 1; }
  done
  host=$(hostname -s) user=$(id -un)
  mkdir -p "$dir"/{key,socket,state,spool}
  chmod 700 "$dir/key"
  chmod 755 "$dir" "$dir/socket"
  head -c 128 /dev/urandom >"$dir/key/munge"
  chmod 400 "$dir/key/munge"
  cat >"$dir/slurm.conf" <<CONF
ClusterName=longhaul
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$dir/socket/munge
PluginDir=$plugins
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000
PartitionName=test Nodes=$host Default=YES State=UP
CONF
  export SLURM_CONF=$dir/slurm.conf

  munged --foreground --force --num-threads=2 --key-file="$dir/key/munge" --socket="$dir/socket/munge" \
    --pid-file="$dir/key/pid" --seed-file="$dir/key/seed" --log-file="$dir/munged.log" >"$dir/munged.out" 2>&1 &
  slurm_pids+=($!)
  for _ in {1..50}; do [[ -S $dir/socket/munge ]] && break || sleep 0.1; done
  [[ -S $dir/socket/munge ]] || { slurm_fails "munged made no socket"; return 1; }
  slurmctld -D -i >"$dir/slurmctld.log" 2>&1 &
  slurm_pids+=($!)
  slurmd -D -N "$host" -d "$(command -v slurmstepd)" >"$dir/slurmd.log" 2>&1 &
  slurm_pids+=($!)
  for _ in {1..60}; do
    [[ $(timeout 5 sinfo -h -o %t 2>/dev/null) == idle ]] && return 0
    sleep 0.5
  done
  slurm_fails "the node did not become idle in 30 s"
}

stop_slurm() {
  local pid
  [[ -z ${SLURM_CONF:-} ]] || timeout 10 scancel --quiet --user="$(id -un)" 2>/dev/null
  for ((i = ${#slurm_pids[@]} - 1; i >= 0; --i)); do
    pid=${slurm_pids[i]}
    kill "$pid" 2>/dev/null
    for _ in {1..50}; do kill -0 "$pid" 2>/dev/null && sleep 0.1 || break; done
    kill -9 "$pid" 2>/dev/null
  done
  wait 2>/dev/null
  slurm_pids=()
}
