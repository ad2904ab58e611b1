#!/usr/bin/env bash
# Run the GPU check in the environment of PYTHON, which has CUDA builds of torch and torchvision, without a network.
#
#   scripts/gpu_check.sh PYTHON VENV WHEELS [ARGUMENT ...]
#
# VENV is a virtual environment on top of PYTHON's packages. The wheels of the folder WHEELS (`make gpu-wheels`) are installed
# into it, without an index; they win over PYTHON's packages. The arguments go to `python -m trident.gpu_check`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2 wheels=$3
shift 3

"$python" - <<'CODE' || exit 1
import importlib.util, sys
missing = [name for name in ("torch", "torchvision", "numpy", "PIL", "onnx", "onnxruntime", "onnxscript", "pip") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}: name a Python that has CUDA builds of torch and torchvision")
CODE

if ! [ -e "$venv/.ready" ] || [ -n "$(find "$wheels" -name '*.whl' -newer "$venv/.ready" 2>/dev/null)" ]; then
  rm -rf "$venv"
  "$python" -m venv --without-pip --system-site-packages "$venv"
  # A virtual environment that is made by another one sees the packages of the Python below it only.
  "$python" - "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'CODE'
import pathlib, site, sys
(pathlib.Path(sys.argv[1]) / "below.pth").write_text("\n".join(site.getsitepackages()) + "\n")
CODE
  if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip --python "$venv/bin/python" install --quiet --no-index --no-deps --no-compile --no-cache-dir "$wheels"/*.whl
  else
    echo "no wheels in $wheels (make gpu-wheels): $python must have all packages"
  fi
  touch "$venv/.ready"
fi
exec env PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$venv/bin/python" -m trident.gpu_check "$@"
