# Batchmill on Ray's own image, for the nodes of deploy/raycluster.yaml: Ray's operator counts on tools of that image.
#
#   docker build --file deploy/ray.Dockerfile --tag batchmill-ray:0.1.0 .
#
# For --engine vllm the nodes with GPUs need vLLM as well: --build-arg EXTRA_PACKAGES=vllm, on an image with CUDA.

ARG BASE=rayproject/ray:2.60.0-py312
FROM ${BASE}
ARG EXTRA_PACKAGES=
COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE /tmp/source/
COPY --chown=ray src /tmp/source/src
RUN pip install --disable-pip-version-check --no-cache-dir "/tmp/source[postgres,bucket,ray,otel]" ${EXTRA_PACKAGES}
