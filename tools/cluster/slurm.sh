#!/usr/bin/env bash
#SBATCH --job-name=lathe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# A run on Slurm that goes on until it is done: USR1, two minutes before the end of its time, makes it
# save and leave, then it is queued once more. Say how many nodes and GPUs there are above, and:
#   sbatch tools/cluster/slurm.sh --model gpt2-124m --data data/books --steps 20000 --out runs/books ...
# LATHE_LAUNCH chooses how ranks are started: srun with PMIx (the default, where Slurm and MPI were
# built with it), mpirun (Open MPI finds the allocation by itself), or srun without MPI (GPUs alone).
set -uo pipefail
program=${LATHE_TRAIN:-build/train}

case ${LATHE_LAUNCH:-pmix} in
  pmix) srun --mpi=pmix "$program" "$@" ;;
  mpirun) mpirun --map-by ppr:"${SLURM_NTASKS_PER_NODE:-1}":node "$program" "$@" & wait $! ;;
  none)
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun --mpi=none "$program" --rendezvous "$head:$((20000 + SLURM_JOB_ID % 20000))" "$@"
    ;;
  *) echo "LATHE_LAUNCH is '$LATHE_LAUNCH', and should be pmix, mpirun or none" >&2; exit 2 ;;
esac
code=$?

# Left early and well: the last line of the run says so, and there is more to do.
out=""
for ((i = 1; i < $#; ++i)); do [[ ${!i} == --out ]] && next=$((i + 1)) && out=${!next}; done
if [[ $code == 0 && -n $out && -f $out/config.toml ]]; then
  steps=$(sed -n 's/^steps=//p' "$out/config.toml")
  done_steps=$(find "$out" -maxdepth 1 -name 'step-????????' | sort | tail -n 1 | sed 's/.*step-0*//')
  if [[ ${done_steps:-0} -lt ${steps:-0} ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit $code
