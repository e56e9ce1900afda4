"""Losses, rewards and weights after five steps, against TRL's own trainers on the plain model."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.objectives.log_probabilities import judge
from hunyuan_train.objectives.preferences import make_preference_objective
from hunyuan_train.trainer.step import train_step
from tests.batches import batch_of, plain_model, released_state
from tests.clients.environments import client_python
from tests.engines import kept_weights, small_engine
from tests.objectives.test_preferences import PROMPT, documents
from tests.ranks import run_ranks

STEPS, RATE, BETA, EPSILON = 5, 1e-5, 0.1, 1e-6
TOLERANCE = 1e-5  # of figures; of gradients' norms and of what weights moved, as a share
LOSS_TYPES = {"dpo": "sigmoid", "ipo": "ipo"}
SCRIPT = Path(__file__).parents[1] / "clients" / "trl_preferences.py"
Rank = tuple[list[dict[str, float]], dict[tuple[str, int], Tensor]]


def rows_for(name: str) -> list[dict[str, object]]:
    """The documents as TRL takes them."""
    texts = [one.tolist() for one in documents()]
    parts = [(text[: PROMPT + 1], text[PROMPT + 1 :]) for text in texts]
    if name == "kto":
        return [
            {"prompt_ids": prompt, "completion_ids": answer, "label": index % 2 == 0}
            for index, (prompt, answer) in enumerate(parts)
        ]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in zip(parts[::2], parts[1::2], strict=True)
    ]


def whole_batch() -> Batch:
    texts = documents()
    batch = batch_of(texts, [PROMPT] * len(texts))
    answers = [text[PROMPT + 1 :] for text in texts]
    others = [
        np.concatenate([text[: PROMPT + 1], answers[index - 1]]) for index, text in enumerate(texts)
    ]
    sides = np.array([CHOSEN, REJECTED] * (len(texts) // 2), np.uint8)
    return replace(batch, sides=sides, mismatched=batch_of(others, [PROMPT] * len(others)))


def train_here(name: str) -> Rank:
    engine = small_engine(stage=3, expert_size=1, adam_epsilon=EPSILON)
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = 0.0
    config = PreferenceConfig(objective=name, beta=BETA)
    objective = make_preference_objective(config, group=None, reference_is_base=False)
    batch = whole_batch()
    [logps], [others] = (judge(engine, [one], None) for one in (batch, batch.mismatched))
    mismatched = replace(batch.mismatched, reference_logps=others)
    batch = replace(batch, reference_logps=logps, mismatched=mismatched)
    figures = []
    for _ in range(STEPS):
        result = train_step(engine, objective, [batch], learning_rate=RATE)
        figures.append({"loss": result.loss, "grad_norm": result.grad_norm, **result.by_group})
    return figures, kept_weights(engine.module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_losses_rewards_and_weights_are_those_of_trl(name: str, tmp_path: Path) -> None:
    model = plain_model()
    start = {key: one.clone() for key, one in released_state(model).items()}
    model.save_pretrained(tmp_path / "model")
    settings = {
        "objective": name,
        "loss_type": [LOSS_TYPES.get(name, "")],
        "beta": BETA,
        "steps": STEPS,
        "learning_rate": RATE,
        "adam_beta2": 0.95,
        "adam_epsilon": EPSILON,
        "rows": rows_for(name),
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [client_python("trl"), SCRIPT, tmp_path / "model", tmp_path / "settings.json"]
    subprocess.run([*map(str, command), str(tmp_path)], check=True)
    theirs = json.loads((tmp_path / "figures.json").read_text())
    [(ours, weights)] = run_ranks(train_here, 1, name)
    for mine, other in zip(ours, theirs, strict=True):
        for figure in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert mine[figure] == pytest.approx(float(other[figure]), abs=TOLERANCE), figure
        assert mine["logps/chosen"] == pytest.approx(float(other["logps/chosen"]), abs=TOLERANCE)
        assert mine["grad_norm"] == pytest.approx(float(other["grad_norm"]), rel=TOLERANCE)
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=False)
    off = moved = 0.0
    for key, one in released_state(model).items():
        mine = torch.cat([weights[part] for part in sorted(weights) if part[0] == key])
        off += float((mine - one).square().sum())
        moved += float((one - start[key]).square().sum())
    assert moved > 0
    assert (off / moved) ** 0.5 < TOLERANCE
