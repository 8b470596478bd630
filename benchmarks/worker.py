"""One process that measures: pinned to its cores before JAX or PyTorch start a thread.

``python -m benchmarks.worker JOB`` reads a job as JSON and prints one JSON line a result.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def main() -> None:
    """Pin this process, then do the job."""
    job = json.loads(sys.argv[1])
    cores = sorted(os.sched_getaffinity(0))[: job["cores"]]
    os.sched_setaffinity(0, cores)
    # Imported here: whatever starts threads counts the cores when it is imported.
    module, function = job["measure"].split(".")
    measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    for result in measure(len(cores), **job["arguments"]):
        print(json.dumps(result), flush=True)


def results(
    measure: str, cores: int, *, environment: Mapping[str, str] | None = None, **arguments: Any
) -> Any:
    """Run ``module.function`` of the benchmarks in a process of its own; yield its results as they come.

    Args:
      measure: what to run.
      cores: how many cores to pin the process to.
      environment: variables for it, beside this one's.
      arguments: of the function.
    """
    job = json.dumps({"measure": measure, "cores": cores, "arguments": arguments})
    command = [sys.executable, "-m", "benchmarks.worker", job]
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        sys.exit(f"benchmarks: a measuring process ended with {process.returncode}")


if __name__ == "__main__":
    main()
