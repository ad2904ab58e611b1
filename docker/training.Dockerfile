# Training, export and import; the container runs to completion.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# --- torch: a layer that the training and TorchServe images share; these lines must be identical in both files
FROM ${PYTHON_IMAGE} AS torch
ARG RUNTIME=cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 HOME=/tmp
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trident
COPY constraints.txt /build/
# The default index has only torch wheels with CUDA, and libtorch links against it. CPU images therefore keep the libraries
# that libtorch loads at start, and drop those loaded only with a GPU: the Triton compiler and cuDNN's engines. With an index
# of CPU wheels in PIP_EXTRA_INDEX_URL, the images are smaller still.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
 && pip install --disable-pip-version-check -c /build/constraints.txt torch torchvision \
 && if [ "${RUNTIME}" = cpu ]; then \
      site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
   && rm -rf "$site"/triton "$site"/nvidia/cudnn/lib/libcudnn_*.so* "$site"/nvidia/*/include \
   && find "$site"/nvidia -name 'libnvshmem_device*' -delete -o -name '*.a' -delete \
   && python -c 'import torch, torchvision'; \
    fi

# --- other requirements: a layer that changes only with the dependency lists, not with the source
FROM ${PYTHON_IMAGE} AS requirements
ARG RUNTIME=cpu
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py training openvino ${RUNTIME} > requirements.txt

FROM torch AS dependencies
COPY --from=requirements /build/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check -c /build/constraints.txt -r /build/requirements.txt

FROM dependencies
LABEL org.opencontainers.image.title="trident-training" \
      org.opencontainers.image.description="Trident's training, export and import" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /app
COPY docker/train.sh ./
COPY trident trident
COPY bundle bundle
COPY training training

RUN python -m compileall -q . && install -d -o trident -g trident /app/artifacts
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["sh", "train.sh"]
