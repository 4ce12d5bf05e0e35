#!/usr/bin/env bash
#PBS -N lathe
#PBS -l select=2:ncpus=64:mpiprocs=8:ngpus=8
#PBS -l walltime=24:00:00
#PBS -j oe
# A run on PBS. Pass the run's arguments in LATHE_ARGUMENTS, because qsub passes none on:
#   qsub -v LATHE_ARGUMENTS="--model gpt2-124m --data data/books --steps 20000 --out runs/books" \
#     tools/cluster/pbs.sh
# PBS sends SIGTERM to this script before time is up (kill_delay). The script sends USR1 to the ranks,
# which save and exit. Submit it again with the same arguments to resume the run.
set -uo pipefail
cd "$PBS_O_WORKDIR"
program=${LATHE_TRAIN:-build/train}
ranks=$(wc -l <"$PBS_NODEFILE")
read -ra arguments <<<"$LATHE_ARGUMENTS"

if command -v palsrun >/dev/null || mpiexec --version 2>/dev/null | grep -q PALS; then
  mpiexec -n "$ranks" --ppn "$((ranks / $(sort -u "$PBS_NODEFILE" | wc -l)))" \
    "$program" "${arguments[@]}" &
else
  mpirun -n "$ranks" --hostfile "$PBS_NODEFILE" "$program" "${arguments[@]}" &
fi
launcher=$!
trap 'kill -USR1 $launcher' TERM
wait $launcher || wait $launcher  # the first wait ends with the signal, the second with the run
