import shlex
import subprocess

import pytest

from hunyuan_train.config.load import load_command_line
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start import launch
from tests.conftest import start_train


def printed(tmp_path, monkeypatch, *flags, nodes="10.0.0.1:4,10.0.0.2:2", folder="a run"):
    monkeypatch.setenv("NODE_IP_LIST", nodes)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    done = start_train(
        "--recipe", "tiny", "--output_dir", str(tmp_path / folder), *flags, cwd=tmp_path
    )
    return done


def test_each_host_gets_a_plain_torchrun_command(tmp_path, monkeypatch, repository):
    done = printed(tmp_path, monkeypatch, "--print-torchrun", "--seed", "7")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == ["# on 10.0.0.1", "# on 10.0.0.2"]
    for rank, slots in ((0, 4), (1, 2)):
        words = shlex.split(lines[2 * rank + 1])
        assert {f"--node_rank={rank}", f"--nproc_per_node={slots}"} <= set(words)
        assert "--master_addr=10.0.0.1" in words
        script = words[words.index(str(repository / "train.py")) + 1 :]
        assert script == [
            *("--recipe", "tiny", "--output_dir", str(tmp_path / "a run")),
            *("--seed", "7", "--expert_parallel_size", "2"),
        ]
    assert not (tmp_path / "a run").exists()


def test_the_script_for_slurm_is_sound_shell(tmp_path, monkeypatch):
    flags = ("--print_slurm", "--run_name", "it's $(mine)")
    done = printed(tmp_path, monkeypatch, *flags, nodes="a:2,b:2")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2\n" in done.stdout
    assert "--resume_from_checkpoint auto" in done.stdout
    script = tmp_path / "job.sh"
    script.write_text(done.stdout)
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_a_job_for_gpus_is_written_on_a_machine_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NODE_IP_LIST", "10.0.0.1:8,10.0.0.2:8")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(launch, "detect_machine", lambda: Machine(num_gpus=0, num_cores=2))
    arguments = ["--recipe", "tiny", "--output_dir", str(tmp_path / "run")]
    for switch, words in (
        ("--print_slurm", ["#SBATCH --gpus-per-node=8\n", "--ranks_here=8 "]),
        ("--print_torchrun", ["# on 10.0.0.2\n", "--nproc_per_node=8 "]),
    ):
        asked = [*arguments, switch]
        assert launch.start_run(load_command_line(asked), asked) == 0
        said = capsys.readouterr()
        assert all(word in said.out for word in words)
        assert "DS_ACCELERATOR" not in said.out
        assert "the job is written for hosts with 8 each" in said.err
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    asked = [*arguments, "--print_slurm"]
    assert launch.start_run(load_command_line(asked), asked) == 0
    assert "gpus-per-node" not in capsys.readouterr().out
    monkeypatch.delenv("NODE_IP_LIST")
    asked = [*arguments, "--print_torchrun", "--num_processes", "8"]  # for this very machine
    with pytest.raises(ConfigError, match="num_processes is 8, but this machine has 2 cores"):
        launch.start_run(load_command_line(asked), asked)


def test_a_job_of_slurms_has_as_many_processes_everywhere(tmp_path, monkeypatch):
    done = printed(tmp_path, monkeypatch, "--print_slurm")
    assert done.returncode == 2
    assert "NODE_IP_LIST gives its hosts 4, 2 slots" in done.stderr


def test_only_one_thing_is_done_instead_of_a_run():
    with pytest.raises(ConfigError, match="--dry_run and --print_slurm are given together"):
        load_command_line(["--dry_run", "--print_slurm"])


@pytest.mark.parametrize("folder", ["my runs/it's", "100%j", "a #comment", 'say "hello"'])
def test_a_folder_is_one_word_in_the_lines_for_slurm(tmp_path, monkeypatch, folder):
    flags = ("--print_slurm", "--run_name", "a b")
    done = printed(tmp_path, monkeypatch, *flags, nodes="a:2", folder=folder)
    assert done.returncode == 0, done.stderr
    directives = [line for line in done.stdout.splitlines() if line.startswith("#SBATCH ")]
    words = [word for line in directives for word in shlex.split(line.removeprefix("#SBATCH "))]
    own = str(tmp_path / folder).replace("%", "%%")
    assert f"--output={own}-%j.txt" in words
    assert "--job-name=a b" in words
    assert len(words) == len(directives)
