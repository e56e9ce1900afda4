"""--deterministic reaches torch, flash-attn and the environment, and is refused where it cannot."""

import os
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from torch.utils import deterministic
from transformers import modeling_flash_attention_utils as flash

from hunyuan_train.config.load import load_command_line
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.rank.environment import deterministic_environment
from hunyuan_train.launcher.start.variables import check_variables
from hunyuan_train.parallel.determinism import compute_deterministically
from hunyuan_train.verify_resume import with_defaults


@pytest.fixture
def restored() -> Iterator[None]:
    fills = deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    deterministic.fill_uninitialized_memory = fills
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("restored")
def test_torch_raises_where_it_has_no_deterministic_kernel() -> None:
    compute_deterministically()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not deterministic.fill_uninitialized_memory  # that costs a pass over all memory


def flash_arguments() -> dict[str, object]:
    """What Transformers hands to flash-attn, which takes all that there is."""
    supports: dict[str, bool] = defaultdict(lambda: True)
    return dict(
        flash._process_flash_attention_kwargs(
            query_length=8, key_length=8, is_causal=True, supports_mapping=supports
        )
    )


def test_transformers_asks_flash_attention_for_a_deterministic_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC", raising=False)
    assert flash_arguments()["deterministic"] is False
    for name, value in deterministic_environment(os.environ).items():
        monkeypatch.setenv(name, value)
    assert flash_arguments()["deterministic"] is True


def test_the_users_own_values_stay_where_results_repeat_under_them() -> None:
    assert deterministic_environment({}) == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "FLASH_ATTENTION_DETERMINISTIC": "1",
        "NCCL_NVLS_ENABLE": "0",
    }
    assert deterministic_environment({"CUBLAS_WORKSPACE_CONFIG": ":16:8"})[
        "CUBLAS_WORKSPACE_CONFIG"
    ] == (":16:8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUBLAS_WORKSPACE_CONFIG", ":0:0"),
        ("FLASH_ATTENTION_DETERMINISTIC", "0"),
        ("NCCL_NVLS_ENABLE", "1"),
    ],
)
def test_a_variable_under_which_results_vary_is_refused_before_the_start(
    name: str, value: str
) -> None:
    command = load_command_line(["--recipe", "tiny", "--deterministic"])
    with pytest.raises(ConfigError, match=f"deterministic is true, and {name} is set to {value}"):
        check_variables({name: value}, command)
    check_variables({name: value}, load_command_line(["--recipe", "tiny"]))


def test_a_proof_of_resume_asks_for_it_unless_the_user_says_otherwise() -> None:
    assert "--deterministic" in with_defaults(["--max_steps", "4"])
    assert "--deterministic" not in with_defaults(["--deterministic=false"])
