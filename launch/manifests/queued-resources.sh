#!/bin/bash
# A sweep on a TPU slice that is waited for (Cloud TPU queued resources), here v5e:4x4, four hosts:
#   PROJECT=... ZONE=us-west4-a NFS=10.0.0.2:/shared bash launch/manifests/queued-resources.sh
# DRY_RUN=1 prints the commands. NFS: a Filestore share, the same on all hosts. Taken away before the end: again.
set -euo pipefail
NAME=${NAME:-sagax} TYPE=${TYPE:-v5litepod-16} SLICE=${SLICE:-v5e:4x4} RUNTIME=${RUNTIME:-v2-tpuv5-litepod}
WHERE=(--project="$PROJECT" --zone="$ZONE")

run() { if [ -n "${DRY_RUN:-}" ]; then printf '%s\n' "$*"; else "$@"; fi; }
hosts() { run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --command="$2"; }
state() { gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)'; }

# 1. Ask for the slice and wait for it. --spot is cheaper, and may be taken away: what is left of it then goes first.
delete() { run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet; }
if [ -z "${DRY_RUN:-}" ] && [ "$(state 2>/dev/null)" = SUSPENDED ]; then delete; fi
run gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --node-id="$NAME" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
if [ -z "${DRY_RUN:-}" ]; then until [ "$(state)" = ACTIVE ]; do sleep 60; done; fi

# 2. The share, and this commit of Sagax on it: installed once, into an environment that all hosts see.
hosts all "sudo apt-get install -y -q nfs-common python3-venv && sudo mkdir -p /shared && sudo mount $NFS /shared"
hosts 0 "mkdir -p /shared/sagax && tar x -C /shared/sagax && cd /shared/sagax && \
python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu,ray]'" < <(git archive HEAD)

# 3. One Ray over the hosts, and the sweep from the first of them.
hosts 0 "/shared/sagax/.venv/bin/ray start --head --port=6379 && hostname -I | cut -d' ' -f1 > /shared/head"
hosts all "[ \"\$(hostname -I | cut -d' ' -f1)\" = \"\$(cat /shared/head)\" ] || \
/shared/sagax/.venv/bin/ray start --address=\$(cat /shared/head):6379"
hosts 0 "cd /shared/sagax && .venv/bin/python -m launch.sweep --config=configs/grpo/gsm8k.py \
--workdir=/shared/runs/gsm8k_rates --launcher=ray --config.launch.tpu=$SLICE --config.micro_batch=16 \
--config.init_from=/shared/models/Qwen2.5-Math-1.5B --config.data.path=/shared/data/gsm8k"

# 4. Give it back; /shared/runs stays.
delete
