"""Names of the files that a run leaves in its folder, shared by writers and readers."""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STARTS = "starts.jsonl"  # one line each time that the run was started or resumed
ANSWERS = "answers.jsonl"  # what the model answered to held-out questions
PAIRS = "pairs.jsonl"  # held-out pairs, and the rewards of their answers
NEEDLES = "needles.jsonl"  # what it found in long texts
EXPERT_LOSS = "expert_loss.json"  # what quantised experts cost before the first step
ROUTER_LOAD = "router_load.jsonl"
QUARANTINE = "quarantine.jsonl"
SAMPLES = "samples.jsonl"  # a fast and a slow answer at the end of the run
LOG = "log/rank0.txt"
STATUS = "log/status.json"  # what the launcher knows: tries, hosts and their last heartbeat
REPORT = "report.html"
EXPORT = "export"  # a folder: the model, or the adapter

# How the numbers in METRICS begin that depend on the machine and the moment. A resumed run repeats
# all others to the last digit.
CLOCKED = (
    "time",
    "tokens_per_second",
    "step_seconds",
    "seconds_",
    "tflops_",
    "mfu",
    "memory_",
    "host_memory_",
    "gpu_memory_",
    "checkpoint_",
    "restarts",
)


def is_clocked(name: str) -> bool:
    """Whether a number would differ if the same step were done again."""
    return name.startswith(CLOCKED)
