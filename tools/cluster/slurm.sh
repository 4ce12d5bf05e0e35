#!/usr/bin/env bash
#SBATCH --job-name=lathe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# A run on Slurm that requeues itself until it is done: two minutes before time is up, USR1 makes it
# save and exit, and it is queued again. Set the numbers of nodes and GPUs above, then:
#   sbatch tools/cluster/slurm.sh --model gpt2-124m --data data/books --steps 20000 --out runs/books ...
# LATHE_LAUNCH chooses how ranks are started: srun with PMIx (the default; Slurm and MPI must be
# built with it), mpirun (Open MPI finds the allocation itself), or srun without MPI (GPUs only).
set -uo pipefail
program=${LATHE_TRAIN:-build/train}

case ${LATHE_LAUNCH:-pmix} in
  pmix) launch=(srun --mpi=pmix "$program") ;;
  mpirun) launch=(mpirun --map-by "ppr:${SLURM_NTASKS_PER_NODE:-1}:node" "$program") ;;
  none)
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # The ranks recognise each other by this secret; srun passes it on unseen by other users.
    token=$(od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n')
    export LATHE_RENDEZVOUS_TOKEN=${LATHE_RENDEZVOUS_TOKEN:-$token}
    # With srun's own variables a rank would look for the others through MPI.
    # shellcheck disable=SC2016  # each rank is to expand this
    launch=(srun --mpi=none bash -c 'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
      export LOCAL_RANK=$SLURM_LOCALID
      unset SLURM_PROCID
      exec "$@"' bash "$program" --rendezvous "$head:$((20000 + SLURM_JOB_ID % 20000))")
    ;;
  *) echo "LATHE_LAUNCH is '$LATHE_LAUNCH', but must be pmix, mpirun or none" >&2; exit 2 ;;
esac
# B: sends the signal to this script; without it, only what srun started would get it.
# srun and mpirun both pass it on to the ranks.
"${launch[@]}" "$@" &
launcher=$!
trap 'kill -USR1 $launcher' USR1
wait $launcher || wait $launcher  # the first wait ends with the signal, the second with the run
code=$?

# If the run ended without an error but before its last step, requeue the job.
out=""
for ((i = 1; i <= $#; ++i)); do
  case ${!i} in
    --out) next=$((i + 1)) && out=${!next-} ;;
    --out=*) out=${!i#--out=} ;;
  esac
done
if [[ $code == 0 && -n $out && -f $out/config.toml ]]; then
  steps=$(sed -n 's/^steps=//p' "$out/config.toml")
  done_steps=$(find "$out" -maxdepth 1 -name 'step-????????' | sort | tail -n 1 | sed 's/.*step-0*//')
  if [[ ${done_steps:-0} -lt ${steps:-0} ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit $code
