#!/usr/bin/env bash
# Resolve pyproject.toml and write the exact versions: one file each for the main environment, Triton's (which needs an
# older numpy) and the peers'.
set -euo pipefail
uv=${UV:-.venv/bin/uv}
common=(pip compile pyproject.toml --upgrade --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet)
$uv "${common[@]}" --extra all --extra cpu --extra gpu -o constraints.txt
$uv "${common[@]}" --extra triton -o constraints-triton.txt
$uv "${common[@]}" --extra peers -o constraints-peers.txt
$uv "${common[@]}" --extra docs -o constraints-docs.txt
