import pytest

from hunyuan_train.config.inputs import check_output_folder
from hunyuan_train.config.schema import CheckpointConfig, TrainConfig
from hunyuan_train.errors import ConfigError


@pytest.fixture
def earlier_run(tmp_path):
    folder = tmp_path / "run"
    for step in ("step-000020", "step-000100"):
        (folder / "checkpoints" / step).mkdir(parents=True)
    (folder / "config.yaml").touch()
    return str(folder)


def test_another_runs_folder_is_refused_with_the_three_remedies(earlier_run):
    with pytest.raises(ConfigError, match="reached step-000100") as caught:
        check_output_folder(TrainConfig(output_dir=earlier_run), CheckpointConfig())
    for remedy in (
        "--resume_from_checkpoint auto",
        "another --output_dir",
        "--overwrite_output_dir",
    ):
        assert remedy in str(caught.value)
    resumed = CheckpointConfig(resume_from_checkpoint="auto")
    check_output_folder(TrainConfig(output_dir=earlier_run), resumed)
    afresh = TrainConfig(output_dir=earlier_run, overwrite_output_dir=True)
    check_output_folder(afresh, CheckpointConfig())


def test_an_output_folder_without_checkpoints_may_be_used_again(tmp_path):
    (tmp_path / "config.yaml").touch()
    check_output_folder(TrainConfig(output_dir=str(tmp_path)), CheckpointConfig())


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="which is a file; give a folder"):
        check_output_folder(TrainConfig(output_dir=str(tmp_path / "run")), CheckpointConfig())
