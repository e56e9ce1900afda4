#!/usr/bin/env bash
# Fine-tune a Hunyuan MoE. With nothing set: a tiny model on the bundled dialogues, in minutes.
#
#   bash train.sh
#   MODEL_PATH=/models/Hunyuan-A13B-Instruct TRAIN_FILE=my.jsonl bash train.sh --learning_rate 5e-5
#
# RECIPE          tiny, lora, full or a YAML file; default: lora with a model, tiny without
# MODEL_PATH      folder of the model             TOKENIZER_PATH  folder with hy.tiktoken
# TRAIN_FILE      dialogues to train on           EVAL_FILE       held-out dialogues
# OUTPUT_DIR      folder of the run               NUM_PROCESSES   processes (HOST_GPU_NUM works too)
#
# Any flag of train.py may follow; `bash train.sh --help` lists them.
set -euo pipefail
repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hunyuan_train/launcher/venv.sh
source "$repository/hunyuan_train/launcher/venv.sh"

arguments=()
add_flag() { if [[ -n $2 ]]; then arguments+=("$1" "$2"); fi; }

recipe=${RECIPE:-}
case " $* " in
  *" --recipe"* | *" --config"* | *" --help "*) ;;
  *" --model_name_or_path"*) recipe=${recipe:-lora} ;;
  *) recipe=${recipe:-${MODEL_PATH:+lora}} recipe=${recipe:-tiny} ;;
esac
add_flag --recipe "$recipe"
add_flag --model_name_or_path "${MODEL_PATH:-}"
add_flag --tokenizer_name_or_path "${TOKENIZER_PATH:-}"
add_flag --train_data_file "${TRAIN_FILE:-}"
add_flag --eval_data_file "${EVAL_FILE:-}"
add_flag --output_dir "${OUTPUT_DIR:-}"
add_flag --num_processes "${NUM_PROCESSES:-${HOST_GPU_NUM:-}}"

if [[ ${NODE_IP_LIST:-} == *,* || ${NODES:-1} != 1 ]]; then
  echo "error: NODE_IP_LIST or NODES asks for several machines, which train.sh does not start yet;" \
    "start torchrun on each of them instead: see \"Several machines\" in README.md" >&2
  exit 2
fi
prepare_venv requirements.txt
exec "$python" "$repository/train.py" "${arguments[@]}" "$@"
