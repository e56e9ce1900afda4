"""Log to SwanLab and MLflow as a run does, in an environment that has them.

Arguments: folder of the run, first step, notes of an earlier process as JSON. Prints its notes.
"""

import json
import sys
from pathlib import Path

from hunyuan_train.trainer.trackers import open_trackers

folder, first_step, notes = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
image = folder / "load.png"
settings = {f"setting_{number}": number for number in range(150)} | {"long": "x" * 10000}
trackers = open_trackers(
    ["swanlab", "mlflow"], folder=folder, run_name="one", settings=settings, notes=notes
)
assert len(trackers) == 2
found = {}
for tracker in trackers:
    for step in (first_step, first_step + 1):
        tracker.log({"loss": 1 / step, "rewards/chosen": 2.0, "seen_my.jsonl": step}, step)
        tracker.log({"router_drift": 0.5}, step)  # known only later
    tracker.log_table("answers", [{"question": "\u95ee", "answer": "<b>"}], first_step)
    tracker.log_image("router_load", image, first_step)
    tracker.alert("routers", "they have collapsed")
    found |= tracker.notes()
    tracker.finish()
print(json.dumps(found))
