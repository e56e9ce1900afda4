#!/usr/bin/env bash
# Fine-tune a Hunyuan model. With nothing set: a tiny model on the bundled dialogues, in minutes.
#
#   bash train.sh
#   MODEL_PATH=/models/Hunyuan-A13B-Instruct TRAIN_FILE=my.jsonl bash train.sh --learning_rate 5e-5
#
# RECIPE          tiny, lora, one_gpu, full, long or a YAML file; default: lora with a model, tiny with nothing
# MODEL_PATH      the model: a folder, or OWNER/NAME on a hub, which is downloaded
# HUB             huggingface or modelscope       TOKENIZER_PATH  folder with hy.tiktoken
# TRAIN_FILE      dialogues to train on           EVAL_FILE       held-out dialogues
# OUTPUT_DIR      folder of the run               NUM_PROCESSES   processes (HOST_GPU_NUM works too)
#
# Many hosts, from any one of them (`hunyuan-train doctor` looks at them first):
#   NODE_IP_LIST=10.0.0.1:8,10.0.0.2:8 SSH_PORT=36005 bash train.sh
# NODE_IP_LIST    hosts with their processes      HOSTFILE        or a file of them, see hostfiles/
# SSH_PORT SSH_USER SSH_CONFIG  how to reach them CHIEF_IP LOCAL_IP  rank 0's host, and this one
# NODES HOST_GPU_NUM  where they are set, they must agree with the list
#
# A variable that only resembles one of these is refused, and so is a model without dialogues (but for presets,
# whose weights are random: these take the bundled ones).
# A YAML file or any flag of `hunyuan-train train` may follow; `bash train.sh --help` lists them.
set -euo pipefail
repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=hunyuan_train/launcher/venv.sh
source "$repository/hunyuan_train/launcher/venv.sh"

arguments=()
add_flag() { if [[ -n $2 ]]; then arguments+=("$1" "$2"); fi; }

recipe=${RECIPE:-} words=" $* "
if [[ ${1:-} == *.yaml || ${1:-} == *.yml ]]; then words=" --recipe $words"; fi
case $words in
  *" --recipe"* | *" --config"* | *" --help "*) ;;
  *" --model_name_or_path"*) recipe=${recipe:-lora} ;;
  # Data without a model is no demo: train.py asks whose model is meant.
  *" --train_data_file"*) recipe=${recipe:-${MODEL_PATH:+lora}} ;;
  *) recipe=${recipe:-${MODEL_PATH:+lora}}
    if [[ -z ${TRAIN_FILE:-}${EVAL_FILE:-}${TOKENIZER_PATH:-} ]]; then recipe=${recipe:-tiny}; fi ;;
esac
add_flag --recipe "$recipe"
add_flag --model_name_or_path "${MODEL_PATH:-}"
add_flag --tokenizer_name_or_path "${TOKENIZER_PATH:-}"
add_flag --train_data_file "${TRAIN_FILE:-}"
add_flag --eval_data_file "${EVAL_FILE:-}"
add_flag --hub "${HUB:-}"
add_flag --output_dir "${OUTPUT_DIR:-}"
add_flag --num_processes "${NUM_PROCESSES:-${HOST_GPU_NUM:-}}"

prepare_venv requirements.txt
exec "$python" "$repository/train.py" "${arguments[@]}" "$@"
