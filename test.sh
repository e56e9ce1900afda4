#!/usr/bin/env bash
# Run the tests: all but the slow ones and those that need a GPU. Arguments go to pytest:
#   bash test.sh tests/config -k vendor        bash test.sh -m slow        bash test.sh -n 0 --pdb
# Two run at a time: most wait for something now and then. `-n 0` runs one after the other.
set -euo pipefail
repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hunyuan_train/launcher/venv.sh
source "$repository/hunyuan_train/launcher/venv.sh"

prepare_venv requirements-dev.txt
cd "$repository"
exec "$python" -m pytest -m "not slow and not gpu" --numprocesses 2 "$@"
