#!/usr/bin/env bash
# glioray on this machine: makes .venv with what pyproject.toml asks for, at the versions of infra/constraints.txt,
# and with infra/no-deps*.txt, and hands over to infra/local.py. The package itself is not installed: jobs carry the code, as on any cluster.
#
#   GLIORAY_TORCH_INDEX   address of a wheel index with CPU builds of PyTorch, for machines without a GPU
#                         (PyTorch's installation page names it); without it pip's own indexes are asked.
set -euo pipefail
# A shell's or another Python's settings must not reach this environment.
unset CDPATH BASH_ENV PYTHONHOME PYTHONPATH PYTHONSAFEPATH PYTHONSTARTUP PIP_USER PIP_TARGET PIP_PREFIX
script=${BASH_SOURCE[0]}
if [ -L "$script" ]; then script=$(readlink -f "$script"); fi
cd "$(dirname "$script")/.."

usage() {
  cat <<'TEXT'
usage: bash infra/local.sh VERB

  demo [gan]    from nothing to a served model on phantom data, step by step; a second time reuses what is there.
                demo gan: super-resolution GANs, among them one that collapses
  test [ARGS]   every check and all tests; ARGS go to pytest. test --quick: the static checks and the unit tests
  docs          build the documentation and serve it on a free loopback port; docs --build only builds it
  up [--s3]     start MLflow and Ray on free loopback ports (with --s3, an S3 server too)
  down          end what `up` or `demo` started
  status        what runs, and where
TEXT
}

fail() {
  printf 'local.sh: %s\n' "$*" >&2
  exit 1
}

case "${1:-}" in
  demo | test | docs | up | down | status) ;;
  -h | --help | help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

# The extra `dev` has the checks, the test tools and the S3 server; `docs` what builds the documentation; `prepare` what
# prepares images on request; `panoptica` what computes the metrics of BraTS 2026.
extras=""
if [ "$1" = test ]; then extras="dev docs prepare panoptica"; elif [ "$1" = docs ]; then extras=docs; elif [[ " $* " == *" --s3 "* ]]; then extras=dev; fi

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$name"
      return
    fi
  done
  fail "found no Python 3.11 or newer with the modules venv and ensurepip; install one and try again"
}

list_requirements() {
  .venv/bin/python - $extras <<'CODE'
import sys, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(item for name in sys.argv[1:] for item in extras[name]), sep="\n")
CODE
}

install_torch() {
  local version
  version=$(sed -n 's/^torch==//p' infra/constraints.txt)
  if [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then return; fi
  if .venv/bin/python -c 'import torch' 2>/dev/null; then return; fi
  local options=(--quiet --disable-pip-version-check -c infra/constraints.txt)
  if [ -n "${GLIORAY_TORCH_INDEX:-}" ]; then
    .venv/bin/pip install "${options[@]}" --extra-index-url "$GLIORAY_TORCH_INDEX" "torch==$version+cpu" ||
      fail "no torch $version+cpu at GLIORAY_TORCH_INDEX='$GLIORAY_TORCH_INDEX'; check the address"
  elif ! .venv/bin/pip install "${options[@]}" "torch==$version+cpu" 2>/dev/null; then
    printf '%s\n' "  pip's indexes have no CPU build of torch $version: taking the default one, which brings several GB" \
      "  for GPUs that are not here; to spare them, stop, set GLIORAY_TORCH_INDEX (see the top of infra/local.sh)."
  fi
}

install_all() {
  local requirements stamp=.venv/installed.txt
  if [ ! -x .venv/bin/python ]; then
    local python
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "'$python -m venv .venv' failed; see above"
  fi
  requirements=$(list_requirements)
  # Everything that is asked for stands in the stamp, one requirement a line, below the checksum of the files.
  local sum
  sum=$(cat infra/constraints.txt infra/no-deps*.txt | cksum)
  if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$sum" ] && [ -z "$(comm -23 <(sort <<< "$requirements") <(sort "$stamp"))" ]; then
    return
  fi
  echo "installing into .venv (the first time takes some minutes)"
  rm -f "$stamp"
  install_torch
  printf '%s\n' "$requirements" > .venv/requirements.txt
  .venv/bin/pip install --quiet --disable-pip-version-check -c infra/constraints.txt -r .venv/requirements.txt ||
    fail "pip could not install what pyproject.toml asks for; see above"
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r infra/no-deps.txt ||
    fail "pip could not install what infra/no-deps.txt names; see above"
  if [[ " $extras " == *" panoptica "* ]]; then
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r infra/no-deps-panoptica.txt ||
      fail "pip could not install what infra/no-deps-panoptica.txt names; see above"
  fi
  printf '%s\n%s\n' "$sum" "$requirements" > "$stamp"
}

# `ray` and an activated shell know the local cluster without any setting of the user's.
write_shims() {
  install -m 755 infra/ray.sh .venv/bin/ray
  local hook='if [ -f "$VIRTUAL_ENV/../.glioray/env.sh" ]; then . "$VIRTUAL_ENV/../.glioray/env.sh"; fi  # infra/local.sh'
  grep -qF "$hook" .venv/bin/activate || printf '%s\n' "$hook" >> .venv/bin/activate
}

if [ "$1" = down ] || [ "$1" = status ]; then
  [ -x .venv/bin/python ] || { echo "nothing runs: there is no .venv yet"; exit 0; }
else
  install_all
  write_shims
fi
exec .venv/bin/python infra/local.py "$@"
