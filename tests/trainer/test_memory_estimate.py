"""A run's plan is made for the GPU that the driver names."""

import pytest

from hunyuan_train.planner.machine import GPUS
from hunyuan_train.trainer.memory_estimate import find_named


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_gpu_is_known_by_the_name_of_its_driver(name, model):
    assert find_named(name) is GPUS[model]


@pytest.mark.parametrize(
    "name", ["NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4"]
)
def test_speeds_of_another_gpu_are_not_taken(name):
    assert find_named(name) is None
