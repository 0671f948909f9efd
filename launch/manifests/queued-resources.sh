#!/bin/bash
# A sweep on a TPU slice that is waited for (Cloud TPU queued resources), here v5e:4x4, four hosts:
#   PROJECT=... ZONE=us-west4-a NFS=10.0.0.2:/shared bash launch/manifests/queued-resources.sh
# DRY_RUN=1 prints the commands. NFS: a Filestore share, the same on all hosts. Taken away before the end: again.
set -euo pipefail
NAME=${NAME:-sagax} TYPE=${TYPE:-v5litepod-16} SLICE=${SLICE:-v5e:4x4} RUNTIME=${RUNTIME:-v2-tpuv5-litepod}
WHERE=(--project="$PROJECT" --zone="$ZONE") HERE=/shared/sagax

run() { if [ -n "${DRY_RUN:-}" ]; then printf '%s\n' "$*"; else "$@"; fi; }
slice() { run gcloud compute tpus queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"; }
hosts() { run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --command="$2"; }
state() { [ -n "${DRY_RUN:-}" ] || slice describe --format='value(state.state)' 2>/dev/null || true; }

# 1. Ask for the slice and wait for it. --spot is cheaper and may be taken away: what is left of it then goes first.
case $(state) in SUSPENDED | FAILED) slice delete --force --quiet ;; esac
[ -n "$(state)" ] || slice create --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
[ -n "${DRY_RUN:-}" ] || until [ "$(state)" = ACTIVE ]; do sleep 60; done

# 2. The share, and on it this commit of Sagax with a Python of its own, which all hosts see.
hosts all "sudo apt-get install -y -q nfs-common && sudo mkdir -p /shared && \
(mountpoint -q /shared || sudo mount $NFS /shared) && sudo chown \$(id -u) /shared"
hosts 0 "mkdir -p $HERE && tar x -C $HERE && cd $HERE && python3 -m pip install -q --user uv && \
export UV_PYTHON_INSTALL_DIR=/shared/python && ~/.local/bin/uv venv --allow-existing --python 3.12 .venv && \
~/.local/bin/uv pip install -c constraints.txt -e '.[tpu,ray]'" < <(git archive HEAD)

# 3. One Ray over the hosts, and the sweep from the first of them.
hosts all "$HERE/.venv/bin/ray stop"
hosts 0 "$HERE/.venv/bin/ray start --head --port=6379 && hostname -I | cut -d' ' -f1 > /shared/head"
hosts all "[ \"\$(hostname -I | cut -d' ' -f1)\" = \"\$(cat /shared/head)\" ] || \
$HERE/.venv/bin/ray start --address=\$(cat /shared/head):6379"
hosts 0 "cd $HERE && .venv/bin/python -m launch.sweep --config=configs/grpo/gsm8k.py \
--workdir=/shared/runs/gsm8k_rates --launcher=ray --config.launch.tpu=$SLICE --config.micro_batch=16 \
--config.init_from=/shared/models/Qwen2.5-Math-1.5B --config.data.path=/shared/data/gsm8k"

# 4. Give it back; /shared/runs stays.
slice delete --force --quiet
