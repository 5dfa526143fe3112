import subprocess
import sys

from limbeck.train import allocator

PROGRAM = """
import resource, sys, torch, limbeck
inputs = torch.randn(40, 3)
data = limbeck.arrays(inputs, (inputs[:, 0] > 0).long())
torch.manual_seed(0)
teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
limbeck.distill(teacher, student, data, epochs=1, device="cpu", allow=["chance", "permuted"])
assert "limbeck.train.loop" in sys.modules
assert "limbeck.train.allocator" not in sys.modules

def faults():
    for _ in range(20):
        torch.ones(12 * 2**20)  # 48 MiB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
as_it_is = faults()
from limbeck.train.allocator import keep_memory
if keep_memory():
    kept = faults()
    assert 3 * kept < as_it_is, (kept, as_it_is)
"""


def test_distil_leaves_the_allocator_as_it_is_and_keep_memory_fetches_no_pages_anew():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("musl", "1.2"))
    assert allocator.keep_memory() is False
