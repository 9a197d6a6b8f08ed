#!/usr/bin/env bash
# Write the secrets of infra/compose/compose.yaml to infra/compose/.env, readable by its owner only: bash infra/compose/make_env.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -e .env ]; then
  echo "make_env.sh: $PWD/.env is there already; its passwords are those of the volumes, so it stays" >&2
  exit 1
fi
umask 077
secret() { od -An -v -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
{
  echo "AWS_ACCESS_KEY_ID=$(secret 10)"
  echo "AWS_SECRET_ACCESS_KEY=$(secret 20)"
  echo "POSTGRES_PASSWORD=$(secret 32)"
  echo "RAY_AUTH_TOKEN=$(secret 32)"
  echo "GRAFANA_PASSWORD=$(secret 16)"
} > .env
echo "wrote $PWD/.env"
