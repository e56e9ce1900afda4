#!/usr/bin/env bash
# Make the environment of a foreign client (a server, a converter, a rival) and print its interpreter:
#   bash tests/clients/make.sh vllm
# NAME.txt lists its packages; NAME.sh PYTHON, where there is one, does what pip cannot. What has been
# made is used again until one of the two changes. HUNYUAN_CLIENTS says where they lie.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
name=${1:?which client: the name of a .txt file beside this script}
clients=${HUNYUAN_CLIENTS:-$HOME/.cache/hunyuan_train/clients}
recipe=$({ cat "$here/$name.txt" "$here/$name.sh" 2>/dev/null || true; } | sha256sum | cut -c 1-12)
folder=$clients/$name-$recipe
mkdir -p "$clients"

exec 9>"$folder.lock"
flock 9
if [[ ! -e $folder/complete ]]; then
  rm -rf "$folder"
  {
    "${PYTHON:-python3}" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/$name.txt"
    if [[ -e $here/$name.sh ]]; then bash "$here/$name.sh" "$folder/bin/python"; fi
  } >&2
  touch "$folder/complete"
fi
echo "$folder/bin/python"
