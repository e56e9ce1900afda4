"""Names of the files that a run leaves in its folder, shared by writers and readers."""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STARTS = "starts.jsonl"  # one line each time that the run was started or resumed
ANSWERS = "answers.jsonl"  # what the model answered to held-out questions
ROUTER_LOAD = "router_load.jsonl"
QUARANTINE = "quarantine.jsonl"
LOG = "log/rank0.txt"
REPORT = "report.html"
