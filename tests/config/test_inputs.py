import json

import pytest

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.inputs import check_inputs, check_output_folder, check_weights
from hunyuan_train.config.load import load_config
from hunyuan_train.config.schema import TrainConfig


@pytest.fixture
def earlier_run(tmp_path):
    folder = tmp_path / "run"
    for step in ("step-000020", "step-000100"):
        (folder / "checkpoints" / step).mkdir(parents=True)
    (folder / "config.yaml").touch()
    return str(folder)


def test_a_model_without_weights_is_never_a_random_start(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no weights and not a single .safetensors file"):
        check_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"holds only weights in .bin form"):
        check_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    check_weights(tmp_path)


def test_a_download_that_stopped_half_way_is_refused(tmp_path):
    files = {f"layer.{i}": f"model-{i}.safetensors" for i in range(5)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "model-0.safetensors").touch()
    with pytest.raises(
        ConfigError, match=r"4 of 5 weight files are missing \(model-1.safetensors, "
    ):
        check_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not an index of weights"):
        check_weights(tmp_path)


def test_a_preset_needs_no_weights(tmp_path):
    check_inputs(load_config(["--output_dir", str(tmp_path)]), is_preset=True)


def test_another_runs_folder_is_refused_with_the_three_remedies(earlier_run):
    with pytest.raises(ConfigError, match="reached step-000100") as caught:
        check_output_folder(TrainConfig(output_dir=earlier_run))
    for remedy in (
        "--resume_from_checkpoint auto",
        "another --output_dir",
        "--overwrite_output_dir",
    ):
        assert remedy in str(caught.value)
    check_output_folder(TrainConfig(output_dir=earlier_run, resume_from_checkpoint="auto"))
    check_output_folder(TrainConfig(output_dir=earlier_run, overwrite_output_dir=True))


def test_an_output_folder_without_checkpoints_may_be_used_again(tmp_path):
    (tmp_path / "config.yaml").touch()
    check_output_folder(TrainConfig(output_dir=str(tmp_path)))


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="which is a file; give a folder"):
        check_output_folder(TrainConfig(output_dir=str(tmp_path / "run")))
