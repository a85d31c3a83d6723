# docker build -t cpift .
#   torch from PyPI, which brings CUDA's libraries
# docker build -t cpift --build-arg TORCH_INDEX=<PyTorch's index of CPU builds> .
#   a quarter of the size, for machines without a GPU
# docker build -t cpift --build-arg BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime .
#   a CUDA base that has torch already
# docker run --rm --gpus all -v "$PWD:/work" cpift run recipe.yaml --out runs/mine
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRAS=adapters,eval,math
ARG TORCH_INDEX=""

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1 \
    NUMBA_CACHE_DIR=/tmp/numba HF_HOME=/work/.cache/huggingface

# A layer of its own: torch changes less often than the sources. Versions are the package's own ranges.
# hadolint ignore=DL3013
RUN python -c "import torch" 2>/dev/null || pip install "torch>=2.6" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install "/source[${EXTRAS}]"

RUN useradd --create-home --uid 10001 cpift && mkdir /work && chown cpift /work
USER 10001
WORKDIR /work
ENTRYPOINT ["cpift"]
CMD ["--help"]
