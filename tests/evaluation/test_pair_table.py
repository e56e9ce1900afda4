"""Every held-out pair is shown once, whichever rank has seen it."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.batches.loader import DataShard, eval_batches
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.dataset import CHOSEN
from hunyuan_train.evaluation.pair_table import PairTable, make_pair_table
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.json_lines import JsonLines
from hunyuan_train.objectives.objective import Sums
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.ranks import run_ranks

NUM_PAIRS = 60


def see_all(folder: Path) -> None:
    """Rewards that the number of a pair makes up, for this rank's part of the pairs."""
    start_process_group(timeout_minutes=2)
    rank, tokenizer = dist.get_rank(), load_tokenizer(TINY_TOKENIZER)
    data = DataConfig(
        train_data_file=str(folder / "pairs_in.jsonl"),
        cache_dir=str(folder / "cache"),
        max_seq_length=256,
    )
    dataset = prepare_dataset(data, tokenizer, records="pairs")
    table = make_pair_table(dataset, tokenizer, JsonLines(folder / f"pairs{rank}.jsonl"))
    for step in (1, 2):
        for batch in eval_batches(dataset, DataShard(rows=1, num_ranks=2, rank=rank), packing=True):
            numbers = torch.from_numpy(batch.sample_ids[batch.sides == CHOSEN] // 2).double()
            zero = torch.zeros(())
            table.see(batch, Sums(zero, zero, torch.stack([step * numbers, -numbers])))
        table.write(step)
    PairTable().write(3)  # nothing to gather


def test_pairs_of_all_ranks_are_kept_with_their_texts(tmp_path: Path) -> None:
    records = [
        {"mode": "fast", "prompt": f"q{n}", "chosen": f"yes {n}", "rejected": f"no {n}"}
        for n in range(NUM_PAIRS)
    ]
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    (tmp_path / "pairs_in.jsonl").write_text(text)
    run_ranks(see_all, 2, tmp_path)
    for rank in range(2):
        rows = [json.loads(line) for line in (tmp_path / f"pairs{rank}.jsonl").open()]
        assert [row["step"] for row in rows] == [1] * 40 + [2] * 40
        for row in rows:
            number = int(row["reward_chosen"] / row["step"])
            assert row["reward_rejected"] == -number
            assert f"q{number}<" in row["prompt"]
            assert f"\nyes {number}\n" in row["chosen"]
            assert f"\nno {number}\n" in row["rejected"]
        numbers = [-int(row["reward_rejected"]) for row in rows[:40]]
        assert (numbers[0], numbers[-1], len(set(numbers))) == (0, NUM_PAIRS - 1, 40)
