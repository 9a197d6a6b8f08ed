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

# The history stays behind when a working directory is uploaded: state its commit, where the user states nothing.
commit_of() {
  local folder="" previous="" word
  for word in "$@"; do
    case $word in
      --) break ;;
      --metadata-json | --metadata-json=*) return ;;
      --working-dir=*) folder=${word#*=} ;;
    esac
    if [ "$previous" = --working-dir ]; then folder=$word; fi
    previous=$word
  done
  if [ -z "$folder" ]; then return; fi
  # Another project's commit says nothing about this code.
  git -C "$folder" ls-files --error-unmatch platform/glioray/commit.txt &>/dev/null || return
  git -C "$folder" rev-parse HEAD
  if [ -n "$(git -C "$folder" status --porcelain --untracked-files=no)" ]; then echo -dirty; fi
}
if [ "${1:-} ${2:-}" = "job submit" ]; then
  commit=$(commit_of "${@:3}" | tr -d '\n')
  if [ -n "$commit" ]; then
    set -- job submit --metadata-json "{\"glioray.git_commit\": \"$commit\"}" "${@:3}"
  fi
fi
exec "$bin/python" -m ray.scripts.scripts "$@"
