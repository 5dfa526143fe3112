"""The shards of a store as tasks on a Ray cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from limbeck.errors import LimbeckError
from limbeck.files.atomic import NoSpace

RETRIES = 3
"""How often a shard is built again after its worker has died or failed."""


def built(command: Sequence[str], count: int, *, gpus: bool) -> Iterator[int]:
    """Run ``python -m *command --shard i/count`` for every i on the cluster; yield the number of each finished shard.

    Tasks run in the folder of this process, which all machines must see, and, with ``gpus``, have a GPU each if the
    cluster has GPUs. The cluster is that of the environment variable ``RAY_ADDRESS``, or this machine.

    Raises:
        LimbeckError: Ray is not installed; a shard cannot be built, or has failed `RETRIES` + 1 times.
    """
    try:
        import ray
    except ImportError as error:
        raise LimbeckError("--ray needs Ray, which is not installed: pip install 'limbeck[ray]'") from error

    def build(shard: str, folder: str) -> str:
        line = [sys.executable, "-m", *command, "--shard", shard]
        ended = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode not in (0, LimbeckError.exit_code, NoSpace.exit_code):  # the user has to fix these
            raise RuntimeError(ended.stderr[-2000:])
        return ended.stderr if ended.returncode else ""

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
    with ray.init(log_to_driver=False):
        each = 1 if gpus and ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=each, max_retries=RETRIES, retry_exceptions=True)(build)
        waiting = {task.remote(f"{number}/{count}", os.getcwd()): number for number in range(count)}
        while waiting:
            done, _ = ray.wait(list(waiting))
            try:
                problem = ray.get(done[0])
            except ray.exceptions.RayError as error:
                problem = str(error)
            number = waiting.pop(done[0])
            if problem:
                raise LimbeckError(f"shard {number}/{count} was not built: {problem}")
            yield number
