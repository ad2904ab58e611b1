# Triton with Trident's python models. On the public image Triton's own onnxruntime backend classifies.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.06-py3

# --- what its python models need, before any source: a layer that changes only with these lists
# Without the onnxruntime backend they classify by themselves, and need onnxruntime.
FROM ${TRITON_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
RUN if [ -e /opt/tritonserver/backends/onnxruntime ]; then extras=; else extras=cpu; fi \
 && python3 requirements.py $extras > requirements.txt

FROM ${TRITON_IMAGE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints-triton.txt /build/
COPY --from=requirements /build/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --disable-pip-version-check --target /opt/trident/packages \
      -c /build/constraints-triton.txt -r /build/requirements.txt

FROM ${TRITON_IMAGE}
LABEL org.opencontainers.image.title="trident-triton" \
      org.opencontainers.image.description="Triton with Trident's model repository" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 HOME=/tmp \
    TRIDENT_TRITON_HOME=/opt/tritonserver
# The interpreter in Triton's python backend does not look at PYTHONPATH; before what the image has, for Triton needs numpy 1.
RUN echo 'import sys; sys.path[:0] = ["/app", "/opt/trident/packages"]' \
    > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/trident.pth"
# The public image has a user of its own with uid 1000; ours has the same number as in Trident's other images.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trident \
 && install -d -o trident -g trident /deployment
COPY --from=dependencies /opt/trident/packages /opt/trident/packages
WORKDIR /app
COPY bundle bundle
COPY serving serving
COPY model_repository model_repository
RUN python3 -m compileall -q bundle serving
USER 10001:10001
STOPSIGNAL SIGTERM
# The check enforces its own timeout, TRIDENT_REQUEST_TIMEOUT_S (600 at most) and a little more.
HEALTHCHECK --interval=5s --timeout=610s --start-period=120s --retries=3 CMD ["python3", "-IS", "serving/container/top1_probe.py"]
# Without the public image's own entry point, which prints a banner.
ENTRYPOINT ["python3", "-m", "serving.container"]
CMD ["triton"]
