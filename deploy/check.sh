#!/bin/sh
# Everything about the deployment that can be checked without deploying it. Stops at the first fault.
set -eu
prometheus=deploy/prometheus

echo "== Dockerfiles"
hadolint Dockerfile deploy/models.Dockerfile
echo "== compose"
check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml deploy/api-keys.yml
python deploy/gateway_memory.py
echo "== Kubernetes: schemas"
python deploy/kubernetes/check.py
echo "== policies"
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
for overlay in deploy/kubernetes/overlays/* deploy/kubernetes/examples/*/; do
    kubectl kustomize "$overlay" > "$rendered/$(basename "$overlay").yaml"
done
cp Dockerfile deploy/models.Dockerfile "$rendered"
checkov --quiet --compact --config-file deploy/checkov.yaml --directory "$rendered"
echo "== Prometheus and Alertmanager"
promtool check config $prometheus/prometheus.yml > "$rendered/log" || { cat "$rendered/log"; exit 1; }
promtool test rules $prometheus/tests/*.yml > "$rendered/log" 2>&1 || { cat "$rendered/log"; exit 1; }
amtool check-config $prometheus/alertmanager.yml > "$rendered/log" || { cat "$rendered/log"; exit 1; }
python deploy/prometheus/check.py
echo "== files made from others"
python deploy/render.py --check
echo "the deployment is in order"
