#!/bin/sh
# Make the bundle $MODEL if there is none yet: import it if $IMPORT is set, else train and export it.
#
#   train.sh [ARGUMENTS OF `trident train`]
set -eu
if ls "artifacts/bundles/$MODEL"/*/manifest.json >/dev/null 2>&1; then
  echo "bundle $MODEL is there: nothing to train (another MODEL in .env makes another one)"
  exit 0
fi
if [ -n "${IMPORT:-}" ]; then
  exec python -m trident import "$MODEL"
fi
python -m trident train --name "$MODEL" "$@"
exec python -m trident export --name "$MODEL"
