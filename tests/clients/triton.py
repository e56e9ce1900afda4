"""Scripts of the tests where Triton is installed: in an environment of its own."""

import json
import os
import subprocess
from typing import Any

from tests.clients.environments import client_python


def ask_triton(module: str, *words: str, **variables: str) -> Any:
    """What a script of the tests prints as JSON, where triton is there.

    Args:
        module: the script.
        words: its arguments.
        variables: of its environment.
    """
    answer = subprocess.run(
        [client_python("triton"), "-m", module, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return json.loads(answer.stdout)
