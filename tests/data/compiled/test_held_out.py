"""A held-out share leaves a sample on each side, or there is no evaluation."""

import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.cache import prepare_evaluation
from hunyuan_train.errors import DataError
from tests.data.dialogues import chat


def _questions(dataset):
    return {int(dataset.records[record]["line"]) for record in dataset.samples["record"]}


@pytest.mark.parametrize("number", [2, 3, 5, 20])
@pytest.mark.parametrize("fraction", [1e-12, 0.01, 0.5])
def test_each_side_has_a_sample_however_few_there_are(prepare, write_records, number, fraction):
    path = write_records([chat(f"{fraction} {n}", "b", mode="fast") for n in range(number)])
    train, held_out = (
        _questions(prepare(path, split, eval_fraction=fraction)) for split in ("train", "eval")
    )
    assert train
    assert held_out
    assert not train & held_out
    assert len(train | held_out) == number


def test_a_record_without_a_sample_fills_no_side(prepare, write_records):
    long = "many words " * 400
    records = [chat(f"{n} {long}", "b", mode="fast") for n in range(30)]
    path = write_records([*records, chat("x", "b", mode="fast"), chat("y", "b", mode="fast")])
    for split in ("train", "eval"):
        dataset = prepare(path, split, eval_fraction=0.5, overlong="drop", max_seq_length=64)
        assert _questions(dataset) <= {31, 32}
        assert len(dataset) == 1


def test_one_question_is_trained_on_and_not_evaluated(prepare, write_records, tokenizer, tmp_path):
    path = write_records([chat("a", f"{n}", mode="fast") for n in range(3)])
    assert len(prepare(path, eval_fraction=0.3)) == 3
    with pytest.raises(DataError, match=r"eval_fraction is 0\.3, and .* have one question only"):
        prepare(path, "eval", eval_fraction=0.3)
    config = DataConfig(
        train_data_file=str(path), eval_fraction=0.3, cache_dir=str(tmp_path / "cache")
    )
    assert prepare_evaluation(config, tokenizer) is None


def test_nothing_to_train_on_is_told_for_its_own_reason(prepare, write_records):
    path = write_records([chat("a", "")])
    with pytest.raises(DataError, match="an answer without text"):
        prepare(path, eval_fraction=0.1)
