import ast
import re
import subprocess
import sys

import pytest

from hunyuan_train import cli
from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.config.settings import SECTION_OF
from hunyuan_train.errors import ConfigError, DataError
from hunyuan_train.shipped import CODE_FOLDER, RECIPES
from hunyuan_train.trainer.errors import TrainingError

HEAVY = ("torch", "transformers", "deepspeed", "datasets", "pandas")


def test_help_lists_every_setting_and_the_commands(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in SECTION_OF)
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "fine-tune a model" in text
    assert "check, convert, show and measure dialogues" in text


def test_the_data_commands_are_reached(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "--help"])
    assert caught.value.code == 0
    assert "convert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(ConfigError, 2), (DataError, 2), (CheckpointError, 2), (TrainingError, 1)],
)
def test_what_a_user_can_fix_is_one_paragraph(error, exit_code, capsys, monkeypatch):
    def fail(arguments):
        raise error("data.jsonl:3 is broken; fix it")

    monkeypatch.setattr(cli, "train", fail)
    assert cli.main(["train"]) == exit_code
    assert capsys.readouterr().err == "error: data.jsonl:3 is broken; fix it\n"


def test_every_function_that_the_tables_name_exists():
    rows = cli.COMMANDS.values()
    named = {cli.LAUNCHER, cli.RANK, *cli.DEFERRED.values()}
    named |= {one for row in rows for one in (row.added_by, row.run_by, *row.lent.values()) if one}
    assert len(named) > 25
    for module, _, function in (one.partition(":") for one in named):
        source = CODE_FOLDER / "hunyuan_train" / f"{module.replace('.', '/')}.py"
        tree = ast.parse(source.read_text(encoding="utf-8"))
        defined = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
        assert function in defined, f"{module} has no {function}"


def test_every_row_of_what_is_deferred_is_used():
    sources = [one.read_text(encoding="utf-8") for one in CODE_FOLDER.glob("hunyuan_train/**/*.py")]
    used = {name for text in sources for name in re.findall(r'Deferred\("([^"]+)"', text)}
    assert used == set(cli.DEFERRED)


LONG_NAME = "a" * 300


@pytest.mark.parametrize(
    "command",
    [
        ["verify", LONG_NAME],
        ["report", LONG_NAME],
        ["chat", f"{LONG_NAME}/export"],
        ["evaluate", LONG_NAME, "--needle_lengths", "1024"],
        ["data", "check", f"{LONG_NAME}.jsonl"],
        ["data", "stats", LONG_NAME],
        ["data", "convert", LONG_NAME, "out.jsonl"],
        ["export", LONG_NAME, "out"],
        ["export", "run", "é" * 150],
    ],
)
def test_a_name_that_no_file_has_is_refused_by_every_command(command, capsys):
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "in which one name has more than 255 bytes; no file has such a name" in said
    assert said.startswith("error: the path is '")


def test_a_path_that_no_file_has_is_refused(capsys):
    assert cli.main(["report", "folder/" * 1000]) == 2
    assert "which has more than 4095 bytes; no file has such a path" in capsys.readouterr().err


def test_a_recipe_with_a_name_that_no_file_has_is_no_recipe(capsys):
    assert cli.main(["train", "--recipe", LONG_NAME, "--dry_run"]) == 2
    assert "is neither a recipe of ours" in capsys.readouterr().err


def test_with_nothing_named_the_demo_is_run_and_called_so(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command, words = cli.load_or_demonstrate(["--max_steps", "3"])
    assert words == ["--recipe", "tiny", "--max_steps", "3"]
    assert (command.config.train.max_steps, command.config.optimizer.learning_rate) == (3, 4e-3)
    assert cli.main(["train", "--dry_run"]) == 0
    assert "so this is the demo (--recipe tiny)" in capsys.readouterr().err
    monkeypatch.setenv("RECIPE", "lora")  # which train.sh reads, and nobody else
    assert cli.main(["train", "--dry_run"]) == 2
    assert "give --recipe instead" in capsys.readouterr().err


@pytest.mark.parametrize("named", [["--model_name_or_path", "tiny"], ["--recipe", "lora"]])
def test_what_is_named_is_no_demo(named):
    command, words = cli.load_or_demonstrate(named)
    assert (command.is_demo, words) == (False, named)


def test_an_interruption_is_silent(capsys, monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupt)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def fail(arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "train", fail)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train"])


# What a command may import: modules, and none of these. Processor time grows with their number, and
# on a busy machine tells less than it: 0.16 s, 0.19 s and 0.47 s, where nothing else runs.
LATER = ("jsonschema", "asyncio", "hunyuan_train.launcher.doctor", "hunyuan_train.report.page")
DATA = ("numpy", "psutil", "tokenizers", "hunyuan_train.data")
IMPORTED = {
    ("--help",): (290, DATA),
    ("train", "--help"): (290, DATA),
    ("train", "--lora_rnk", "8"): (360, DATA),
    ("plan", "--recipe", "tiny"): (370, DATA),
    ("train", "--recipe", "tiny", "--dry_run"): (720, ()),
}


@pytest.mark.parametrize("arguments", IMPORTED)
def test_help_plans_and_dry_runs_import_what_they_need(repository, tmp_path, arguments):
    most, not_yet = IMPORTED[arguments]
    code = (
        "import sys\nfrom hunyuan_train.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"found = [name for name in {HEAVY + LATER + not_yet!r} if name in sys.modules]\n"
        "print(len(sys.modules), found, file=sys.stderr)"
    )
    folder = ["--output_dir", str(tmp_path / "run")] if "--dry_run" in arguments else []
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments, *folder],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    number, _, found = result.stderr.splitlines()[-1].partition(" ")
    assert found == "[]"
    assert int(number) <= most


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bf16", "--fp16"], "error: fp16 is true, and this run computes in bfloat16"),
        (["--expert_parallel_size", "3"], "error: expert_parallel_size is 3; it must divide"),
        (["--model_name_or_path", "no/such/model"], "error: model_name_or_path is no/such/model"),
        (["--num_processes", "4096"], "error: num_processes is 4096, but this machine has"),
        (["--hidden_size", "6400"], "error: these flags are not taken here:"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(run_train, flags, message):
    result = run_train("--recipe", str(RECIPES / "tiny.yaml"), "--dry_run", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert "\n\n" not in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["chat", "evaluate"])
def test_a_folder_without_a_model_is_refused_before_torch_is_imported(
    repository, tmp_path, command
):
    code = (
        "import sys; from hunyuan_train.cli import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    wrong = tmp_path / "wrong"
    rest = ["--needle_lengths", "1024"] if command == "evaluate" else []
    result = subprocess.run(
        [sys.executable, "-c", code, command, str(wrong), *rest],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "2 []"
    assert f"{wrong} holds neither config.json nor" in result.stderr


def test_export_and_merge_refuse_what_they_are_given_without_torch(repository, tmp_path):
    code = (
        "import sys; from hunyuan_train.cli import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    (tmp_path / "config.json").write_text("{}")
    for arguments, message in [
        (["export", "no/run", "out"], "no/run is no complete checkpoint"),
        (["merge", "no/base", "no/adapter", "out"], "no/base is no model folder"),
        (["merge", str(tmp_path), "no/adapter", "out"], "has model_type None"),
        (["export", "no/run", str(tmp_path)], "exists; give another folder"),
    ]:
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == "2 []\n"
        assert message in " ".join(result.stderr.split())


def test_ctrl_c_in_code_given_as_text_has_the_same_exit_code(tmp_path):
    """As libraries have it while they are imported; Python would end itself by the signal."""
    (tmp_path / "pressed.py").write_text(
        "import os, signal, sys\n"
        "from hunyuan_train import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.run_command = lambda _: exec('os.kill(os.getpid(), signal.SIGINT); input()')\n"
        "sys.exit(cli.main([]))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-m", "pressed"],
        env={"PYTHONPATH": f"{CODE_FOLDER}:{tmp_path}"},
        check=False,
    )
    assert finished.returncode == 130
