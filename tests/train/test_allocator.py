import platform
import subprocess
import sys

from limbeck.train import allocator

FAULTS = """
import resource, sys, torch
from limbeck.train.allocator import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
def work():
    for _ in range(20):
        torch.ones(12 * 2**20)  # 48 MiB each
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_are_not_fetched_anew_at_every_step():
    def faults(how):
        return int(
            subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout
        )

    if platform.libc_ver()[0] == "glibc":
        assert faults("kept") * 3 < faults("as it is")


DISTILS = """
import sys, torch, limbeck
inputs = torch.randn(40, 3)
data = limbeck.arrays(inputs, (inputs[:, 0] > 0).long())
torch.manual_seed(0)
teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
limbeck.distill(teacher, student, data, epochs=1, device="cpu", allow=["chance", "permuted"])
assert "limbeck.train.loop" in sys.modules
assert "limbeck.train.allocator" not in sys.modules
"""


def test_distil_leaves_the_allocator_of_the_process_as_it_is():
    subprocess.run([sys.executable, "-c", DISTILS], check=True)


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("musl", "1.2"))
    assert allocator.keep_memory() is False
