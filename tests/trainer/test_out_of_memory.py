"""An error that says that memory ran out is told with figures and with what helps in this run."""

import re
import traceback

import pytest
import torch

from hunyuan_train import run as run_module
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.launcher.rank.heartbeat import Heartbeat
from hunyuan_train.trainer.out_of_memory import explain_memory, find_remedies, read_figures
from tests.config.resolved import EIGHT_GPUS, resolve_flags

# As torch 2.13 words it, with another program on the GPU.
CROWDED = (
    "CUDA out of memory. Tried to allocate 1.12 GiB. GPU 3 has a total capacity of 79.11 GiB of "
    "which 512.50 MiB is free. Process 4711 has 9.50 GiB memory in use. Including non-PyTorch "
    "memory, this process has 69.10 GiB memory in use. Of the allocated memory 61.61 GiB is "
    "allocated by PyTorch, and 5.25 GiB is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid "
    "fragmentation.  See documentation for Memory Management  "
    "(https://docs.pytorch.org/docs/stable/notes/cuda.html"
    "#optimizing-memory-usage-with-pytorch-alloc-conf)"
)
FULL = re.sub(r"Process 4711 .*? in use\. ", "", CROWDED).replace("5.25 GiB", "210.00 MiB")


def a13b(**settings: object) -> ResolvedRun:
    usual = {"bf16": True, "optimizer": "lean", "learning_rate": 1e-5, "max_seq_length": 8192}
    flags = [f"--{name}={value}" for name, value in (usual | settings).items()]
    return resolve_flags(["--model_name_or_path=a13b", *flags], EIGHT_GPUS, shape=A13B)


def test_the_allocators_figures_add_up_to_the_gpu() -> None:
    figures = read_figures(CROWDED)
    assert figures["wanted"] == int(1.12 * 2**30)
    assert figures["free"] == int(512.5 * 2**20)
    words = explain_memory(torch.OutOfMemoryError(CROWDED), a13b())
    assert words
    assert (
        "1.12 GiB more were wanted. Of 79.11 GiB tensors hold 61.61, holes between them 5.25, CUDA "
        "and NCCL 2.24, and 0.50 are free."
    ) in words
    assert "Process 4711 holds 9.50 GiB of this GPU: end it" in words


def test_holes_that_would_have_held_it_come_first_and_small_ones_are_no_word_worth() -> None:
    words = explain_memory(torch.OutOfMemoryError(CROWDED), a13b())
    assert words
    assert words.index("expandable_segments:True") < words.index("--moe_chunks")
    assert "expandable" not in str(explain_memory(torch.OutOfMemoryError(FULL), a13b()))


@pytest.mark.parametrize(
    ("settings", "first", "absent"),
    [
        ({}, "moe_chunks 8", ["gradient_checkpointing"]),
        ({"use_lora": True, "optimizer": "adamw"}, "moe_chunks", ["use_lora", "optimizer"]),
        ({"gradient_checkpointing": False}, "gradient_checkpointing true", []),
        ({"moe_chunks": 8}, "sequence_parallel_size 2", ["moe_chunks"]),
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size 1", []),
    ],
)
def test_what_helps_most_comes_first_and_what_is_set_is_not_named(
    settings: dict[str, object], first: str, absent: list[str]
) -> None:
    remedies = find_remedies(a13b(**settings))
    gains = [one.num_bytes for one in remedies]
    assert gains == sorted(gains, reverse=True)
    assert next(one for one in remedies if not one.changes_steps).flags.startswith(first)
    flags = " ".join(one.flags for one in remedies)
    assert all(name not in flags for name in absent), remedies
    others = [one.flags for one in remedies if one.changes_steps]
    assert "max_seq_length 4096" in others
    assert any("use_lora true" in one for one in others) == (not settings.get("use_lora"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("NCCL Error 1: unhandled cuda error\nCuda failure 2 'out of memory'"),
            "outside of torch's allocator",
        ),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), "outside"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:122] err == 0. DefaultCPUAllocator: can't "
                         "allocate memory: you tried to allocate 8589934592 bytes. Error code 12"),
            "--snapshot_gib 0",
        ),
        (MemoryError(), "Host memory ran out"),
    ],
)  # fmt: skip
def test_memory_that_ran_out_elsewhere_is_told_too(error: Exception, words: str) -> None:
    assert words in str(explain_memory(error, a13b()))


def test_other_errors_get_no_such_words() -> None:
    assert explain_memory(RuntimeError("shape mismatch"), a13b()) is None


def test_a_rank_that_runs_out_of_memory_says_all_this_behind_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> int:
        raise torch.OutOfMemoryError(CROWDED)

    monkeypatch.setattr(run_module, "train_and_export", fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_module.run(a13b(), Heartbeat(None))
    told = "".join(traceback.format_exception(caught.value)).splitlines()
    assert "GPU memory ran out" in told[-1]
    assert any("in fail" in line for line in told)
