#!/usr/bin/env bash
# Put llama.cpp's library (libllama, libggml) into an environment's lib folder, prebuilt, from npm.
set -euo pipefail
prefix=$(dirname -- "$(dirname -- "$1")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent @node-llama-cpp/linux-x64@3.22.1
tar xzf ./*.tgz
cp package/bins/linux-x64/*.so "$prefix/lib/"
