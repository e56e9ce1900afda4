"""The Kubernetes example: valid, in agreement with itself, and its command starts ranks on CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hunyuan_train.config.load import load_command_line
from hunyuan_train.launcher.exit_codes import RESUME, USER_ERROR
from hunyuan_train.shipped import VERSION
from tests.conftest import REPOSITORY
from tests.disposable_root import DisposableRoot, registry_settings, why_impossible

MANIFEST = REPOSITORY / "examples" / "kubernetes.yaml"
VALIDATE = Path(sys.executable).with_name("kubernetes-validate")
OLDEST = "1.31"  # in which podFailurePolicy and indexed jobs are stable
RUN = """\
recipe: tiny
output_dir: /shared/runs/pods
max_steps: 2
eval_steps: 0
logging_steps: 1
sample_answers: false
resume_from_checkpoint: auto
"""


def read_manifest() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    service, config, job = yaml.safe_load_all(MANIFEST.read_text())
    return service, config, job


def validate(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(VALIDATE), "--strict", *flags, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not VALIDATE.exists(), reason="pip install -r requirements-dev.txt")
@pytest.mark.parametrize("version", [OLDEST, "1.37"])
def test_it_is_valid_and_a_mistake_in_it_would_be_found(version: str, tmp_path: Path) -> None:
    done = validate(MANIFEST, "-k", version)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(MANIFEST.read_text().replace("completionMode", "completionsMode"))
    assert validate(wrong, "-k", version).returncode != 0


def test_its_parts_agree() -> None:
    service, _, job = read_manifest()
    pod, name = job["spec"]["template"]["spec"], service["metadata"]["name"]
    [container] = pod["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    assert f"--master_addr={job['metadata']['name']}-0.{name}" in container["args"][0]
    nodes = int(environment["NUM_NODES"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == nodes
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == int(environment["GPUS_PER_NODE"])
    assert container["image"].endswith(f":{VERSION}")
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}
    stop = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert stop < pod["terminationGracePeriodSeconds"]
    codes = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert codes == {"FailJob": [USER_ERROR], "Ignore": [RESUME]}


def test_its_settings_are_ours(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(read_manifest()[1]["data"]["run.yaml"])
    command = load_command_line([str(file)])
    assert command.config.checkpoints.resume_from_checkpoint == "auto"
    assert command.config.train.output_dir.startswith("/shared/")


@pytest.mark.slow
@pytest.mark.skipif(bool(why := why_impossible()), reason=why)
def test_two_pods_train_together_by_its_command(tmp_path: Path) -> None:
    _, _, job = read_manifest()
    [container] = job["spec"]["template"]["spec"]["containers"]
    shared, settings, hosts = tmp_path / "shared", tmp_path / "config", tmp_path / "hosts"
    shared.mkdir()
    settings.mkdir()
    (settings / "run.yaml").write_text(RUN)
    hosts.write_text(f"127.0.0.1 localhost hunyuan-train-0.hunyuan-train {os.uname().nodename}\n")
    root = DisposableRoot.at(tmp_path / "disk")
    apt = {"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"} | registry_settings()
    install = "apt-get update -qq && apt-get install -qq -y --no-install-recommends tini"
    root.add(root.command(["sh", "-c", install], environment=apt, folder="/"))
    root.bind(settings, "/config")
    root.bind(shared, "/shared")
    root.bind(hosts, "/etc/hosts")
    root.add("unshare --net --fork bash -eu <<'END'\nip link set lo up")
    environment = {one["name"]: one["value"] for one in container["env"]}
    environment |= {
        **{"GPUS_PER_NODE": "1", "DS_ACCELERATOR": "cpu", "HOME": "/tmp"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "TORCH_EXTENSIONS_DIR": os.environ["TORCH_EXTENSIONS_DIR"],
        "OMP_NUM_THREADS": "1",
    }
    words = [*container["command"], *container["args"]]
    for index in range(2):
        own = environment | {"JOB_COMPLETION_INDEX": str(index)}
        line = root.command(words, environment=own, folder="/tmp")
        root.add(f"{line} &\npods[{index}]=$!")
    root.add('for pod in "${pods[@]}"; do wait "$pod"; done\nEND')
    done = root.run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = (shared / "runs/pods/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    [start] = (shared / "runs/pods/starts.jsonl").read_text().splitlines()
    assert json.loads(start)["num_processes"] == 2
    assert (shared / "runs/pods/export/config.json").exists()
