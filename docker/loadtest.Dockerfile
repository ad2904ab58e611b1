# The command line for benchmarks and verification, and Locust; without torch.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# --- dependencies at the lock's exact versions, before any source: this layer changes only with the lists
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
# onnxruntime (`cpu`) and OpenVINO: `trident verify` computes the expected answers to the edge-case images
RUN python requirements.py loadtest cpu openvino > requirements.txt

FROM ${PYTHON_IMAGE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /build/
COPY --from=requirements /build/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
 && /opt/venv/bin/pip install --disable-pip-version-check -c /build/constraints.txt -r /build/requirements.txt \
 && /opt/venv/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="trident-loadtest" \
      org.opencontainers.image.description="Trident's load test" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trident \
 && install -d -o trident -g trident /app/artifacts /app/artifacts/results
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY trident trident
COPY bundle bundle
COPY serving serving
COPY loadtest loadtest

RUN python -m compileall -q .
USER 10001:10001
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "trident"]
CMD ["bench"]
