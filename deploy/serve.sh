#!/bin/sh
# Serves in the foreground, and says once the models are ready how to ask them.
set -eu
port=${PORT:-8080}
bin=${VENV:-.venv}/bin

"$bin/tresnet" serve --port "$port" &
gateway=$!
trap 'kill -INT $gateway 2>/dev/null || true' INT TERM

"$bin/python" - "$port" "$gateway" <<'PYTHON' || { kill -INT $gateway 2>/dev/null || true; }
import os, sys, time, httpx

url, gateway = f"http://127.0.0.1:{sys.argv[1]}", int(sys.argv[2])
for _ in range(600):
    try:
        os.kill(gateway, 0)
        if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
            break
    except ProcessLookupError:
        sys.exit(1)
    except httpx.HTTPError:
        pass
    time.sleep(0.2)
else:
    sys.exit("the models did not become ready; see logs/triton.log")
tasks = {model["task"]: model["name"] for model in httpx.get(f"{url}/models").json()["models"]}
print("\nReady. Ask for a picture's label, from another terminal:\n")
pictures = {"classify": "examples/digit-7.png", "tag": "examples/digits-2-5-7.png"}
for task, name in sorted(tasks.items()):
    print(f"  curl --data-binary @{pictures[task]} '{url}/{task}?model={name}'")
print("\nCtrl-C stops.\n", flush=True)
PYTHON

status=0
wait $gateway || status=$?
# A trapped signal ends the first wait early; the gateway is then finishing what is in flight.
while kill -0 $gateway 2>/dev/null; do wait $gateway || status=$?; done
exit $status
