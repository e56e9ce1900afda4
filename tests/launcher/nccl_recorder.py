"""A stand-in for NCCL's flight recorder, which a build without CUDA lacks.

torch has one template for the recorders of all backends (FlightRecorder.hpp and
FlightRecorderDetail.hpp), so a test lays this one's JSON beside that of gloo. What is NCCL's own: a
CUDA event marks the end of each collective, and is asked whenever the recorder is read.
"""

import json
import time


class Recorder:
    """Remembers the last collectives of a rank, as `FlightRecorder<CUDAEvent>` does."""

    def __init__(self, groups, *, max_entries=2000):
        self.groups = groups  # their ranks by name
        self.max_entries = max_entries
        self.entries = []
        self.num_begun = dict.fromkeys(groups, 0)
        self.num_recorded = 0

    def begin(self, group, name, *sizes, started=False):
        """The CPU hands a collective to the GPU."""
        self.num_begun[group] += 1
        number = self.num_begun[group]
        entry = {
            "record_id": self.num_recorded,
            "pg_id": list(self.groups).index(group),
            "process_group": [group, "default_pg" if group == "0" else "undefined"],
            "thread_name": "python",
            "thread_id": "140377630169984",
            "collective_seq_id": number,
            "p2p_seq_id": 0,
            "op_id": number,
            "profiling_name": f"nccl:{name}",
            "time_created_ns": time.time_ns(),
            "input_sizes": [list(size) for size in sizes],
            "input_dtypes": ["BFloat16"] * len(sizes),
            "output_sizes": [list(size) for size in sizes],
            "output_dtypes": ["BFloat16"] * len(sizes),
            "state": "started" if started else "scheduled",
            "time_discovered_started_ns": time.time_ns() if started else 0,
            "time_discovered_completed_ns": 0,
            "retired": False,
            "timeout_ms": 1800000,
            "is_p2p": False,
        }
        self.num_recorded += 1
        self.entries = [*self.entries, entry][-self.max_entries :]

    def complete(self, num_first, group="0", *, seen_by_watchdog=True):
        """The GPU is through with the first collectives of a group."""
        for entry in self.entries:
            if entry["process_group"][0] == group and entry["collective_seq_id"] <= num_first:
                entry["state"] = "completed"
                entry["time_discovered_completed_ns"] = time.time_ns()
                entry["retired"] = seen_by_watchdog

    def time_out(self):
        """The watchdog gives up on all that has not completed, and forgets it."""
        for entry in self.entries:
            entry["retired"] = True

    def dump_json(self, *, includeCollectives=True):
        """What `_dump_nccl_trace_json` gives."""
        trace = {
            "version": "2.10",
            "comm_lib_version": "2.28.9",
            "nccl_comm_state": {},
            "pg_config": {
                name: {"name": name, "desc": "", "ranks": json.dumps(ranks)}
                for name, ranks in self.groups.items()
            },
            "pg_status": {
                str(number): {
                    "last_completed_collective": "-1",
                    "last_enqueued_collective": str(self.num_begun[name]),
                    "last_started_collective": "-1",
                }
                for number, name in enumerate(self.groups)
            },
        }
        if includeCollectives and self.entries:
            trace["entries"] = self.entries
        return json.dumps(trace).encode()
