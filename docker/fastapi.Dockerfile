# The FastAPI service: onnxruntime and OpenVINO, no torch.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# --- what it needs, at the exact versions of the lock, before any source: a layer that changes only with these lists
FROM ${PYTHON_IMAGE} AS requirements
ARG RUNTIME=cpu
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py fastapi openvino ${RUNTIME} > requirements.txt \
 && if [ "${RUNTIME}" = gpu ]; then echo 'onnxruntime-gpu[cuda,cudnn]' >> requirements.txt; fi

FROM ${PYTHON_IMAGE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /build/
COPY --from=requirements /build/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
 && /opt/venv/bin/pip install --disable-pip-version-check -c /build/constraints.txt -r /build/requirements.txt \
 # OpenVINO's parts for Intel's GPUs and NPUs: a third of its size
 && (cd /opt/venv/lib/python3*/site-packages/openvino/libs && rm -f ./*_intel_gpu_* ./*_intel_npu_* cache.json) \
 && /opt/venv/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="trident-fastapi" \
      org.opencontainers.image.description="Trident's FastAPI service on onnxruntime or OpenVINO" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 HOME=/tmp
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trident \
 && install -d -o trident -g trident /deployment
COPY --from=dependencies /opt/venv /opt/venv
# CUDA's libraries come in wheels (GPU only); the loader is told where they lie.
RUN find /opt/venv -type d -path '*/nvidia/*/lib' > /etc/ld.so.conf.d/trident.conf && ldconfig
WORKDIR /app
COPY bundle bundle
COPY serving serving
RUN python -m compileall -q bundle serving
USER 10001:10001
STOPSIGNAL SIGTERM
# The check enforces its own timeout, TRIDENT_REQUEST_TIMEOUT_S (600 at most) and a little more.
HEALTHCHECK --interval=5s --timeout=610s --start-period=120s --retries=3 CMD ["python", "-IS", "serving/container/top1_probe.py"]
ENTRYPOINT ["python", "-m", "serving.container"]
CMD ["fastapi"]
