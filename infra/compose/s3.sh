#!/bin/sh
# Start the S3 server (SeaweedFS) with the keys of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; nobody gets in without them.
set -eu
umask 077
cd "$(mktemp -d)"
cat > s3.json <<JSON
{"identities": [{"name": "glioray", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "$AWS_ACCESS_KEY_ID", "secretKey": "$AWS_SECRET_ACCESS_KEY"}]}]}
JSON
# The filer's own port answers anybody unless its requests must be signed, by keys that this process alone knows.
for section in jwt.signing jwt.signing.read jwt.filer_signing jwt.filer_signing.read; do
  printf '[%s]\nkey = "%s"\n' "$section" "$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')"
done > security.toml
exec weed mini -dir "${S3_DATA:-/data}" -ip 127.0.0.1 -ip.bind "${S3_BIND:-0.0.0.0}" -s3.config s3.json -bucket data,storage \
  -master.telemetry=false -admin.ui=false -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 "$@"
