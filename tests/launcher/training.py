"""Training on the hosts of a test, as a user starts it: `train.sh` on the first of them."""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.launcher.network import Network, environment_of

SETTINGS = (
    *("--recipe", "tiny", "--eval_data_file", "none", "--eval_steps", "0", "--no_export"),
    *("--logging_steps", "1", "--expert_parallel_size", "1", "--sample_answers", "false"),
    *("--max_seq_length", "256", "--overlong", "drop"),
)
STEPS = 8
RUN = (*SETTINGS, "--max_steps", str(STEPS), "--save_steps", "4")


@dataclass
class Training:
    """A `train.sh` on the first host, and what it says with the time of each line."""

    network: Network
    folder: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def wait_for(self, pattern: str) -> re.Match[str]:
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(self.text())

    def end(self) -> int:
        self.lines += self.process.stdout.readlines()
        return self.process.wait()

    def text(self) -> str:
        return "".join(self.lines)

    def find(self, host: int, words: str) -> int:
        found = [one for one, line in self.network.processes(host).items() if words in line]
        assert found, self.network.processes(host)
        return max(found)

    def rank(self, host: int) -> int:
        return self.find(host, "train.py --config /tmp/hunyuan_train_")


def start(network, folder, *flags, hosts=(0, 1), **variables):
    nodes = ",".join(f"{network.address(host)}:1" for host in hosts)
    process = subprocess.Popen(
        network.command(0, ["bash", str(REPOSITORY / "train.sh"), *flags]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment_of(network, NODE_IP_LIST=nodes, OUTPUT_DIR=str(folder), **variables),
    )
    return Training(network, folder, process)


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]
