#!/bin/sh
# Everything that is to be found out on a GPU, in ten minutes, offline: see README.md beside this file.
#   benchmarks/gpu/run.sh [--out results.jsonl] [--dry-run] [--only tests speed memory context]
# Wheels in .whl/ (or $WHEELS) are unpacked beside the machine's own packages, which stay as they are.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
wheels=${WHEELS:-.whl}
if ls "$wheels"/*.whl >/dev/null 2>&1; then
  "$python" -m pip install --quiet --no-index --no-deps --disable-pip-version-check --upgrade --target .gpu "$wheels"/*.whl
fi
export PYTHONPATH="$PWD/src:$PWD/.gpu${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec "$python" -W ignore benchmarks/gpu/run.py "$@"
