#!/usr/bin/env bash
# The job scripts of tools/cluster with simulated Slurm and PBS and real ranks. A job whose time is over
# saves and is queued again if possible. Resumed, its run ends bit for bit like that of a job with enough
# time.
# usage: cluster_scripts_test.sh TRAIN CORPUS PREPARE MPIEXEC SCRIPTS
set -euo pipefail
corpus=$2 prepare=$3 mpiexec=$4 scripts=$5
export LATHE_TRAIN=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$mpiexec" --version 2>/dev/null | grep -qE 'Open MPI|OpenRTE' || { echo "skipped: no Open MPI"; exit 77; }

# srun --mpi=KIND PROGRAM ... : starts two ranks, with MPI or only as a step of Slurm. scontrol records
# its arguments.
mkdir "$scratch/bin"
cat >"$scratch/bin/srun" <<'END'
#!/usr/bin/env bash
kind=$1
shift
[[ $kind == --mpi=none ]] || exec mpirun -n 2 "$@"
echo "$LATHE_RENDEZVOUS_TOKEN" >"$NOTES/token"
echo "$*" >"$NOTES/arguments"
export SLURM_STEP_NUM_TASKS=2 SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" &
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
wait -n
END
cat >"$scratch/bin/scontrol" <<END
#!/usr/bin/env bash
case \$1 in show) echo localhost ;; *) echo "\$*" >>"$scratch/scontrol" ;; esac
END
chmod +x "$scratch"/bin/*
PATH=$scratch/bin:$(dirname "$mpiexec"):$PATH
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMP_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0  # MPI keeps memory until the end
export NOTES=$scratch SLURM_JOB_ID=4711 SLURM_NTASKS_PER_NODE=2 SLURM_JOB_NODELIST=localhost
export PBS_O_WORKDIR=$scratch PBS_NODEFILE=$scratch/nodes
printf 'localhost\nlocalhost\n' >"$PBS_NODEFILE"

"$corpus" --bytes 6000 --out "$scratch/stories.txt"
"$prepare" --tokenizer char --val-fraction 0.2 --input "$scratch/stories.txt" --out "$scratch/data" >/dev/null
flags=(--model shakespeare-cpu --n-layer 2 --n-head 2 --n-embd 16 --seq-len 8 --batch-size 2 --device cpu
       --data "$scratch/data" --eval-interval 0 --zero-stage 1 --log-interval 1 --steps 4000)

fail() {
  echo "$1"
  tail -n 20 "$scratch"/*.log
  exit 1
}
weights() { sha256sum <"$1/step-00004000/model.safetensors"; }

# Starts a job, sends it a signal after it has trained for a while, and waits for its end.
interrupted() {  # SIGNAL LOG COMMAND...
  local signal=$1 log=$2 job
  shift 2
  "$@" >"$log" 2>&1 &
  job=$!
  for ((i = 0; i < 600; ++i)); do
    if grep -q '^step 50/' "$log"; then break; fi
    sleep 0.1
  done
  kill "-$signal" $job
  wait $job || fail "a job that was signalled to stop ended with $?"
}

mpirun -n 2 "$LATHE_TRAIN" "${flags[@]}" --out "$scratch/whole" >"$scratch/whole.log" 2>&1 ||
  fail "the run with time enough"

for launch in pmix mpirun; do
  export LATHE_LAUNCH=$launch
  out=$scratch/$launch log=$scratch/$launch.log
  : >"$scratch/scontrol"
  interrupted USR1 "$log" "$scripts/slurm.sh" "${flags[@]}" "--out=$out"
  [[ ! -d $out/step-00004000 ]] || fail "$launch: the run was over before the signal came"
  [[ $(<"$scratch/scontrol") == "requeue 4711" ]] || fail "$launch: the job was not queued again"
  "$scripts/slurm.sh" "${flags[@]}" --out "$out" >>"$log" 2>&1 || fail "$launch: the second job"
  [[ $(<"$scratch/scontrol") == "requeue 4711" ]] || fail "$launch: a run that is done was queued again"
  [[ $(weights "$out") == $(weights "$scratch/whole") ]] || fail "$launch: other weights"
  echo "slurm.sh, $launch: saved, queued again, resumed"
done
# Two ranks that must meet without MPI. On CPUs they end with an error.
LATHE_LAUNCH=none "$scripts/slurm.sh" "${flags[@]}" >"$scratch/none.log" 2>&1 && fail "without MPI"
grep -q '2 ranks were started without MPI' "$scratch/none.log" || fail "without MPI: other words"
echo "slurm.sh, none: ranks without MPI know that they are"
# They get a secret through the environment, not as an argument, which every user of a host can see.
token=$(<"$scratch/token")
[[ $token =~ ^[0-9a-f]{64}$ ]] || fail "without MPI: the token is '$token'"
grep -q "$token" "$scratch/arguments" && fail "without MPI: the token is among the arguments"
LATHE_LAUNCH=none "$scripts/slurm.sh" "${flags[@]}" >"$scratch/none.log" 2>&1 && fail "without MPI"
[[ $(<"$scratch/token") != "$token" ]] || fail "without MPI: two jobs have the same token"
LATHE_RENDEZVOUS_TOKEN=mine LATHE_LAUNCH=none "$scripts/slurm.sh" "${flags[@]}" \
  >"$scratch/none.log" 2>&1 && fail "without MPI"
[[ $(<"$scratch/token") == mine ]] || fail "without MPI: a token that was given was not taken"
echo "slurm.sh, none: each job has a token of its own"
LATHE_LAUNCH=what "$scripts/slurm.sh" >"$scratch/what.log" 2>&1 && fail "LATHE_LAUNCH=what was taken"

out=$scratch/pbs
export LATHE_ARGUMENTS="${flags[*]} --out $out"
interrupted TERM "$scratch/pbs.log" "$scripts/pbs.sh"
[[ ! -d $out/step-00004000 ]] || fail "pbs.sh: the run was over before the signal came"
"$scripts/pbs.sh" >>"$scratch/pbs.log" 2>&1 || fail "pbs.sh: the second job"
[[ $(weights "$out") == $(weights "$scratch/whole") ]] || fail "pbs.sh: other weights"
echo "pbs.sh: saved, resumed"
