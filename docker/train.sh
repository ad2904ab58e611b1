#!/bin/sh
# Make the bundle $MODEL if there is none: import it if $IMPORT is set, otherwise train and export it.
#
#   train.sh [ARGUMENTS OF `trident train`]
set -eu
if ls "artifacts/bundles/$MODEL"/*/manifest.json >/dev/null 2>&1; then
  echo "bundle $MODEL exists: nothing to train (set another MODEL in .env to make another one)"
  exit 0
fi
if [ -n "${IMPORT:-}" ]; then
  exec python -m trident import "$MODEL"
fi
python -m trident train --name "$MODEL" "$@"
exec python -m trident export --name "$MODEL"
