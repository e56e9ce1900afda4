# syntax=docker/dockerfile:1
# Training and its commands on NVIDIA GPUs, for any user id; docs/containers.md shows how it is run.
#
#   docker build --tag hunyuan-train .

# CUDA 13.0 is that of torch's own packages in requirements.txt; its compiler builds DeepSpeed's
# extension for --optimizer offload.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# Versions are those of the image's release: Ubuntu deletes all older ones.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends \
    g++ git openssh-client python3 python3-dev python3-venv rsync tini \
  && rm -rf /var/lib/apt/lists/*

# Most of the image, and a layer that stays until requirements.txt changes.
COPY requirements.txt /opt/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
  python3 -m venv /opt/hunyuan \
  && /opt/hunyuan/bin/python -m pip install --requirement /opt/requirements.txt

RUN --mount=type=bind,target=/mnt/source \
  cp -r /mnt/source /opt/source \
  && /opt/hunyuan/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation \
    /opt/source \
  && rm -r /opt/source

# Caches lie in one folder, which a volume may keep: models, tokenized data, compiled kernels.
# USER is for libraries that ask for a name, where the user id has none.
ENV PATH=/opt/hunyuan/bin:$PATH \
  HOME=/home/train \
  USER=train \
  TORCH_EXTENSIONS_DIR=/home/train/.cache/torch_extensions \
  TORCHINDUCTOR_CACHE_DIR=/home/train/.cache/torch_inductor \
  TRITON_CACHE_DIR=/home/train/.cache/triton \
  PYTHONUNBUFFERED=1

# Any user id may write there: `docker run --user`, a pod's runAsUser, OpenShift's own choice.
RUN useradd --no-log-init --uid 10001 --gid 0 --home-dir /home/train train \
  && mkdir -p /home/train/.cache /work \
  && chmod -R 0777 /home/train /work

USER 10001
WORKDIR /work
# tini passes signals on (a stopped container saves a checkpoint) and reaps what is orphaned.
ENTRYPOINT ["tini", "--", "hunyuan-train"]
CMD ["--help"]
