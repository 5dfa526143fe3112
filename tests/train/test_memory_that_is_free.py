"""The memory that is free: that of the machine, or less in a container or a batch job."""

import pytest
import torch

from limbeck.train.memory import free_memory

CPU = torch.device("cpu")
MIB = 2**20


def machine(root, groups, files):
    """A machine with 8 GiB of free memory and these files."""
    written = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\n", "proc/self/cgroup": groups, **files}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder, most, used, cached=0):
    """The files of a control group of version 2, in MiB."""
    return {
        f"sys/fs/cgroup{folder}/memory.max": f"{most if most == 'max' else most * MIB}\n",
        f"sys/fs/cgroup{folder}/memory.current": f"{used * MIB}\n",
        f"sys/fs/cgroup{folder}/memory.stat": f"anon 5\ninactive_file {cached * MIB}\n",
    }


def test_the_free_memory_of_this_machine_is_known():
    assert MIB < free_memory(CPU) <= 2**44


def test_without_a_limit_it_is_that_of_the_machine(tmp_path):
    assert free_memory(CPU, machine(tmp_path, "0::/\n", {})) == 8192 * MIB
    assert free_memory(CPU, machine(tmp_path, "0::/a\n", group("/a", "max", 10))) == 8192 * MIB
    assert free_memory(CPU, machine(tmp_path, "0::/a\n", group("/a", 90_000, 10))) == 8192 * MIB


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", group("", 1024, 100, cached=40), 964),  # a container
        ("0::/host/of/container\n", group("", 1024, 100), 924),  # that sees the path of the host
        ("0::/slurm/job1/task0\n", group("/slurm/job1", 600, 100) | group("/slurm/job1/task0", "max", 50), 500),
        ("0::/a/b\n", group("/a", 600, 100) | group("/a/b", 300, 50), 250),
        ("0::/a\n", group("/a", 300, 400), 0),
        ("0::/other\n", group("/a", 300, 100), 8192),
    ],
)
def test_the_limit_of_a_container_or_a_batch_job_counts(tmp_path, groups, files, expected):
    assert free_memory(CPU, machine(tmp_path, groups, files)) == expected * MIB


def test_a_limit_of_version_1_counts(tmp_path):
    folder = "sys/fs/cgroup/memory/docker/1"
    files = {
        f"{folder}/memory.limit_in_bytes": f"{700 * MIB}\n",
        f"{folder}/memory.usage_in_bytes": f"{200 * MIB}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
    }
    groups = "5:cpuset:/docker/1\n4:memory,hugetlb:/docker/1\n0::/\n"
    assert free_memory(CPU, machine(tmp_path, groups, files)) == 550 * MIB


def test_without_the_files_of_linux_it_is_not_known(tmp_path):
    assert free_memory(CPU, tmp_path) == 2**40
