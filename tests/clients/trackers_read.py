"""What MLflow's own client finds in a run's folder. Arguments: the folder, the id of the run."""

import json
import sys
from pathlib import Path

import mlflow

folder, run_id = Path(sys.argv[1]), sys.argv[2]
client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
run = client.get_run(run_id)
names = ("loss", "rewards/chosen", "seen_my.jsonl", "router_drift")
print(
    json.dumps(
        {
            "name": run.info.run_name,
            "status": run.info.status,
            "settings": run.data.params,
            "tags": run.data.tags,
            "metrics": {
                name: [[one.step, one.value] for one in client.get_metric_history(run_id, name)]
                for name in names
            },
            "files": sorted(
                one.path
                for top in client.list_artifacts(run_id)
                for one in client.list_artifacts(run_id, top.path)
            ),
        }
    )
)
