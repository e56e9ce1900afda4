import pytest

from hunyuan_train.config.preference_reference import reference_is_base, uses_reference_cache
from hunyuan_train.errors import ConfigError
from tests.config.resolved import resolve_flags

LORA = "--use_lora --lora_rank 8 "
EVALUATED = "--eval_data_file data/tiny_eval.jsonl --eval_steps 5 "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--beta 0.2", "beta is 0.2, which only the objectives dpo, .* and objective is sft"),
        ("--objective ipo --label_smoothing 0.1", "only the objectives dpo, simpo read"),
        ("--objective dpo --desirable_weight 2", "only the objectives kto read"),
        ("--objective kto --reference_free", "only the objectives dpo, ipo read"),
        ("--objective dpo --reference_free --precompute_ref_log_probs true", "are both true"),
        ("--objective dpo --precompute_ref_log_probs false", "only adapters that start fresh"),
        (
            f"{LORA} --adapter_name_or_path a --objective dpo --precompute_ref_log_probs false",
            "only adapters that start fresh",
        ),
        ("--adapter_name_or_path a", "lora settings are given but use_lora is false"),
        (EVALUATED + "--objective dpo --metric_for_best_model eval_perplexity", "eval_rewards/"),
        (EVALUATED + "--metric_for_best_model eval_rewards/margins", "begin with one of eval_loss"),
        ("--objective dpa", "objective is 'dpa'; it takes sft, dpo, ipo, kto, orpo or simpo"),
    ],
)
def test_what_an_objective_does_not_read_or_have_is_refused(flags: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_flags(flags)


@pytest.mark.parametrize(
    ("flags", "is_base", "is_kept"),
    [
        ("", False, False),
        ("--objective dpo", False, True),
        (f"--objective dpo {LORA}", True, False),
        (f"--objective dpo {LORA} --precompute_ref_log_probs true", False, True),
        (f"--objective dpo {LORA} --adapter_name_or_path a", False, True),
        (f"--objective dpo {LORA} --reference_free", False, False),
        (f"--objective orpo {LORA}", False, False),
        (f"--objective kto {LORA}", True, False),
    ],
)
def test_where_the_reference_is(flags: str, is_base: bool, is_kept: bool) -> None:
    config = resolve_flags(flags).config
    assert (reference_is_base(config), uses_reference_cache(config)) == (is_base, is_kept)
