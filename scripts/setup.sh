#!/usr/bin/env bash
# Create the virtual environment DIR with REQUIREMENT at the exact versions of CONSTRAINTS.
#
#   scripts/setup.sh DIR CONSTRAINTS REQUIREMENT
#
# DIR/.ready is written last, so the next `make` repeats an interrupted set-up.
set -euo pipefail
dir=$1 constraints=$2 requirement=$3
say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  cat >&2 <<'MESSAGE'
Trident needs CPython 3.11 or 3.12 with the venv module; neither was found.
  Debian, Ubuntu:  apt install python3 python3-venv libpython3-dev
  elsewhere:       install Python 3.11 or 3.12, or name yours: make demo PYTHON=/path/to/python3.11
MESSAGE
  exit 1
}

if ! "$dir/bin/python" -c 'import pip' 2>/dev/null; then
  python=$(find_python)
  say "creating $dir with $python"
  rm -rf "$dir"
  "$python" -m venv "$dir"
fi
rm -f "$dir/.ready"

say "installing $requirement into $dir (several GB with torch: a minute or more at first)"
uv=.venv/bin/uv
if [ "${INSTALLER:-uv}" = uv ] && { [ -x $uv ] || .venv/bin/python -m pip install -q uv -c constraints.txt; }; then
  VIRTUAL_ENV=$dir $uv pip install -c "$constraints" -e "$requirement"
else
  "$dir/bin/python" -m pip install -c "$constraints" -e "$requirement"
fi
touch "$dir/.ready"
say "$dir is ready"
