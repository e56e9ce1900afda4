"""What a checkpoint holds of the trainer comes back as it was."""

import json
from dataclasses import asdict

from hunyuan_train.data.batches.loader import Position
from hunyuan_train.trainer.state import Health, TrainerState, read_state

STATE = TrainerState(7, Position(1, 3), 900, health=Health((1.5, 1.25), 2, num_rollbacks=1))


def test_a_state_comes_back_from_json() -> None:
    assert read_state(json.loads(json.dumps(asdict(STATE)))) == STATE


def test_the_first_checkpoints_called_rollbacks_returns() -> None:
    saved = asdict(STATE)
    saved["health"]["num_returns"] = saved["health"].pop("num_rollbacks")
    assert read_state(saved) == STATE
