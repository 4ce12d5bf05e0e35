#!/usr/bin/env bash
# Ranks on several hosts, which are network namespaces of one machine. Each has its own name and address
# and reaches the others over a virtual switch. Two hosts with two ranks each give the results of four
# ranks on one host, bit for bit.
# usage: hosts_test.sh TRAIN CORPUS PREPARE MPIEXEC
# Needs root and iproute2; exits with 77 (skipped) if namespaces cannot be made.
set -euo pipefail
train=$1 corpus=$2 prepare=$3 mpiexec=$4
scratch=$(mktemp -d)
tag=lathe$$
hosts=("$tag-a" "$tag-b")
addresses=(10.213.77.1 10.213.77.2)
switch=br$$

clean() {
  for host in "${hosts[@]}"; do ip netns del "$host" 2>/dev/null || true; done
  ip link del "$switch" 2>/dev/null || true
  rm -rf "$scratch"
}
trap clean EXIT

skip() {
  echo "skipped: $1"
  exit 77
}
[[ $(id -u) == 0 ]] || skip "making network namespaces takes root"
command -v ip >/dev/null || skip "no iproute2"
"$mpiexec" --version 2>/dev/null | grep -qE 'Open MPI|OpenRTE' || skip "the settings below are Open MPI's"
ip netns add "${hosts[0]}" 2>/dev/null || skip "network namespaces cannot be made here"
ip netns add "${hosts[1]}"
ip link add "$switch" type bridge 2>/dev/null || skip "no virtual switch can be made here"
ip addr add 10.213.77.254/24 dev "$switch"
ip link set "$switch" up
for i in 0 1; do
  ip link add "v$i-$$" type veth peer name eth0 netns "${hosts[$i]}" || skip "no veth"
  ip link set "v$i-$$" master "$switch" up
  ip -n "${hosts[$i]}" addr add "${addresses[$i]}/24" dev eth0
  ip -n "${hosts[$i]}" link set eth0 up
  ip -n "${hosts[$i]}" link set lo up
done

# Replaces ssh: runs the command on the host with the address.
cat >"$scratch/agent" <<AGENT
#!/usr/bin/env bash
case \$1 in
  ${addresses[0]}) host=${hosts[0]} ;;
  ${addresses[1]}) host=${hosts[1]} ;;
  *) exit 1 ;;
esac
shift
exec ip netns exec "\$host" unshare --uts sh -c 'hostname "\$0"; exec sh -c "\$*"' "\$host" "\$@"
AGENT
chmod +x "$scratch/agent"

"$corpus" --bytes 6000 --out "$scratch/stories.txt"
"$prepare" --tokenizer char --input "$scratch/stories.txt" --val-fraction 0.2 --out "$scratch/data" >/dev/null
flags=(--model shakespeare-cpu --n-layer 2 --n-head 2 --n-embd 16 --seq-len 8 --batch-size 2
       --data "$scratch/data" --steps 8 --eval-interval 4 --eval-batches 2 --threads 1 --zero-stage 1
       --bucket-mb 0 --device cpu)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=detect_leaks=0  # MPI keeps memory until the end
settings=(--bind-to none --oversubscribe --mca mpi_yield_when_idle 1)

"$mpiexec" -n 4 "${settings[@]}" "$train" "${flags[@]}" --out "$scratch/one" >/dev/null
"$mpiexec" -n 4 "${settings[@]}" --host "${addresses[0]}:2,${addresses[1]}:2" \
  --mca plm_rsh_agent "$scratch/agent" --mca oob_tcp_if_include 10.213.77.0/24 \
  --mca btl_tcp_if_include 10.213.77.0/24 --mca btl self,vader,tcp --mca pml ob1 \
  "$train" "${flags[@]}" --out "$scratch/two" >"$scratch/output"

grep -E 'ranks +4 on 2 hosts' "$scratch/output"
grep -E "hosts +2 x ${hosts[0]}, 2 x ${hosts[1]}" "$scratch/output"
for file in model.safetensors optimizer-0000{0,1,2,3}-of-00004.safetensors; do
  cmp "$scratch/one/step-00000008/$file" "$scratch/two/step-00000008/$file"
done
echo "four ranks on two hosts: the bits of four ranks on one"
