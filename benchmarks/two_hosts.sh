#!/bin/bash
# A study on a Ray cluster of two hosts with results on a third, all network namespaces of this machine, beside the same
# study in one process: prints whether the checksums of all files are equal, and which host made which stage. The hosts
# divide every training of an SAE between them; then they do so once more by torchrun, without Ray.
#
#     sudo PATH="$PATH" benchmarks/two_hosts.sh FOLDER
#
# FOLDER, outside of /tmp, is made anew. Needs root, iproute2, the extras ray and s3, and moto[server]. Each host has
# processes, an address, a /tmp and a cache of its own; only what the study reads lies on a disk that both see.
# HOSTS_LOSE=1 cuts the second host off the network while it makes a stage; nothing is divided then.
set -eu
folder=$(realpath -m "$1"); here=$(realpath "$(dirname "$0")/.."); python=${PYTHON:-$here/.venv/bin/python}
mkdir "$folder"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
# A host that is cut off is missed when a connection to it has been silent for so long; by default for some minutes.
export RAY_grpc_client_keepalive_time_ms=20000 RAY_grpc_client_keepalive_timeout_ms=20000
export AWS_ENDPOINT_URL=http://10.77.0.3:5000 AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing
export AWS_DEFAULT_REGION=us-east-1 HEREDITY_CACHE=/tmp/heredity no_proxy='*' PATH="$(dirname "$python"):$PATH"

started=()
end() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  wait || true
  for host in head second storage; do ip netns del "heredity-$host" 2>/dev/null || true; done
  ip link del heredity0 2>/dev/null || true
}
trap end EXIT

ip link add heredity0 type bridge
ip link set heredity0 up
number=0
for host in head second storage; do
  number=$((number + 1))
  ip netns add "heredity-$host"
  ip link add "heredity-$number" type veth peer name eth0 netns "heredity-$host"
  ip link set "heredity-$number" master heredity0 up
  ip -n "heredity-$host" address add "10.77.0.$number/24" dev eth0
  ip -n "heredity-$host" link set eth0 up
  ip -n "heredity-$host" link set lo up
done

on() {  # on HOST COMMAND...: in its network, with a /tmp of its own
  local host=$1
  shift
  exec ip netns exec "heredity-$host" bash -c 'mount --bind "$0" /tmp && exec "$@"' "$folder/$host" "$@"
}
mkdir "$folder/head" "$folder/second" "$folder/storage"

cd "$here"
PYTHONPATH=tests "$python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path
import tiny
folder = Path(sys.argv[1])
values = tiny.study_values(folder)
for name in ("stories", "both"):
    del values["model"][name]
values["sae"] |= {"tokens": 16_000, "continue_tokens": 5_000}
tiny.toml(values, folder / "s.toml")
PYTHON
heredity run "$folder/s.toml" --runs "$folder/one" --progress lines >"$folder/one.log" 2>&1

(on storage "$python" -m moto.server -H 0.0.0.0 -p 5000 >"$folder/storage.log" 2>&1) &
started+=($!)
size="--num-cpus=1 --object-store-memory=150000000 --memory=4000000000 --disable-usage-stats --block"
(on head ray start --head --node-ip-address=10.77.0.1 --port=6379 --include-dashboard=false $size \
  >"$folder/head.log" 2>&1) &
started+=($!)
until (on head bash -c '</dev/tcp/10.77.0.1/6379') 2>/dev/null; do sleep 1; done
(on second ray start --address=10.77.0.1:6379 --node-ip-address=10.77.0.2 $size >"$folder/second.log" 2>&1) &
started+=($!)
(on head "$python" - <<'PYTHON'
import time
import ray, s3fs
s3fs.S3FileSystem().mkdir("bucket")
ray.init("10.77.0.1:6379", log_to_driver=False)
while len(nodes := [node for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(1)
print("hosts:", sorted(node["NodeManagerAddress"] for node in nodes))
PYTHON
)
divided=2
if [ "${HOSTS_LOSE:-0}" = 1 ]; then
  divided=1
  (
    until ls "$folder"/second/heredity/*/s/*/.partial-* >/dev/null 2>&1; do sleep 0.2; done
    ls -d "$folder"/second/heredity/*/s/*/.partial-* | sed 's/^.*\.partial-/cut off while it made /'
    ip link set heredity-2 down
  ) &
fi
(on head heredity run "$folder/s.toml" --engine ray --address 10.77.0.1:6379 --runs s3://bucket/runs --progress lines \
  --train-workers $divided)
if [ $divided = 2 ]; then
  launched() {  # launched HOST NUMBER: its part of a run by torchrun
    on "$1" "$python" -m torch.distributed.run --nnodes 2 --node-rank "$2" --nproc-per-node 1 --master-addr 10.77.0.1 \
      --master-port 29500 -m heredity run "$folder/s.toml" --runs s3://bucket/torchrun --until sae --progress lines
  }
  (launched second 1 >"$folder/torchrun.log" 2>&1) &
  started+=($!)
  (launched head 0)
fi
(on head "$python" - "$folder" <<'PYTHON'
import sys
import s3fs
storage = s3fs.S3FileSystem()
for runs in storage.ls("bucket"):
    storage.get(f"{runs}/s", f"{sys.argv[1]}/copy/{runs.rpartition('/')[2]}", recursive=True)
PYTHON
)
"$python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path
folder = Path(sys.argv[1])

def files(study):
    found = {}
    for manifest in study.glob("*/*/manifest.json"):
        place = manifest.parent.relative_to(study)
        found |= {f"{place}/{name}": digest for name, digest in json.loads(manifest.read_text())["files"].items()}
    return found

one = files(folder / "one" / "s")
for copy in sorted((folder / "copy").iterdir()):
    two, saes = files(copy), {name for name in one if name.startswith(("sae/", "sae_stream/"))}
    expected = one if copy.name == "runs" else {name: one[name] for name in two.keys() & one.keys() | saes}
    differ = sorted(name for name in expected.keys() | two.keys() if expected.get(name) != two.get(name))
    print(f"{copy.name}: {len(expected)} files in one process, {len(two)} on two hosts, {len(differ)} differ", *differ[:5])
PYTHON
for host in head second; do
  made=$(ls -d "$folder/$host"/heredity/*/s/*/*-????????????/config.json 2>/dev/null | wc -l)
  echo "$host holds files of $made stages that it made or read"
done
