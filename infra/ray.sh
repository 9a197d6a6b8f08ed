#!/usr/bin/env bash
# Ray's command line, pointed at the local cluster where the user points nowhere. infra/local.sh puts it into .venv/bin.
unset CDPATH PYTHONHOME
script=${BASH_SOURCE[0]}
if [ -L "$script" ]; then script=$(readlink -f "$script"); fi
bin=$(cd "$(dirname "$script")" && pwd)
if [ -f "$bin/../../.glioray/env.sh" ]; then . "$bin/../../.glioray/env.sh"; fi
if [ "${1:-}" = job ] && [ -z "${RAY_API_SERVER_ADDRESS:-}${RAY_ADDRESS:-}" ] && [[ " $* " != *" --address"* ]]; then
  echo "no local cluster runs: \`bash infra/local.sh up\` starts one; another one's address goes into RAY_API_SERVER_ADDRESS" >&2
  exit 1
fi
exec "$bin/python" -m ray.scripts.scripts "$@"
