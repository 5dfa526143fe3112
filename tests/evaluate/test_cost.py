import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.evaluate import Latency, cost, file_bytes, latency, machine, macs, parameters
from limbeck.evaluate.cost import ATTEMPTS, QUIET, WATCHED
from limbeck.evaluate.machine import Reading


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.attention(inputs, inputs, inputs)[0]


class Clock:
    """Stands in for the module `time`: it goes on only when a network rests."""

    def __init__(self) -> None:
        self.milliseconds = 0

    def perf_counter(self) -> float:
        return self.milliseconds / 1e3

    def perf_counter_ns(self) -> int:
        return self.milliseconds * 10**6

    def sleep(self, seconds: float) -> None:
        self.milliseconds += round(1e3 * seconds)


class Load:
    """A machine on which others take so many cores, in one attempt after another."""

    def __init__(self, clock: Clock, *cores: float) -> None:
        self.clock, self.cores = clock, cores
        self.now, self.busy, self.readings = 0.0, 0.0, 0

    def __call__(self) -> Reading:
        attempt = min(self.readings // 2, len(self.cores) - 1)
        before, self.now = self.now, self.clock.perf_counter()
        self.busy += self.cores[attempt] * (self.now - before)
        self.readings += 1
        return Reading(self.now, 0.0, self.busy, 8)


def unknown() -> Reading:
    """A machine that says nothing of its load."""
    return Reading(0.0, 0.0, None, 1)


class Squeezes(nn.Module):
    """Takes two samples and more."""

    def __init__(self, least: int = 2) -> None:
        super().__init__()
        self.linear, self.least = nn.Linear(4, 3), least

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) < self.least:
            raise ValueError("too few samples")
        return self.linear(inputs)


@pytest.fixture(autouse=True)
def as_measured_by_default(monkeypatch) -> None:
    monkeypatch.setattr(cost, "ATTEMPTS", ATTEMPTS)
    monkeypatch.setattr(cost, "WATCHED", WATCHED)


@pytest.fixture
def load_unknown(monkeypatch) -> None:
    monkeypatch.setattr(machine, "read", unknown)


@pytest.fixture
def clock(monkeypatch, load_unknown) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cost, "time", clock)
    return clock


class Rests(nn.Module):
    def __init__(self, clock: Clock, *milliseconds: int) -> None:
        super().__init__()
        self.clock, self.milliseconds, self.runs = clock, milliseconds, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.milliseconds += self.milliseconds[self.runs % len(self.milliseconds)]
        self.runs += 1
        return inputs


class Recorder(nn.Module):
    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        super().__init__()
        self.name, self.log = name, [] if log is None else log
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.log.append(self.name)
        self.seen.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return inputs


class Remembers(nn.Module):
    """Keeps a tensor that its first forward makes, as position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.kept: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones_like(inputs)
        return self.kept * self.scale


class Fails(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("broken")


def normalised() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    network[2].eval()
    return network


def same_as_before(network: nn.Sequential, before: dict[str, Tensor]) -> bool:
    flags = [module.training for module in network.modules()]
    kept = all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    return kept and flags == [True, True, True, False]


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_parameters_are_counted_frozen_ones_too_and_shared_ones_once():
    network = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))
    network[0].weight.requires_grad_(False)
    assert parameters(network) == 10 * 20 + 20 + 2 * 20
    shared = nn.Linear(5, 5)
    assert parameters(nn.Sequential(shared, shared)) == 5 * 5 + 5


def test_macs_of_a_linear_layer_are_its_weights():
    assert macs(nn.Linear(10, 20), (10,)) == 200


@pytest.mark.parametrize(("stride", "groups", "side"), [(1, 1, 6), (2, 1, 3), (1, 2, 6)])
def test_macs_of_a_convolution_are_outputs_times_the_inputs_of_each(stride, groups, side):
    network = nn.Conv2d(4, 6, 3, stride=stride, groups=groups)
    assert macs(network, (4, 8, 8)) == side * side * 6 * (4 // groups) * 3 * 3


@pytest.mark.parametrize("frozen", [False, True])
def test_macs_of_fused_attention_are_counted(frozen):
    network = Attention().requires_grad_(not frozen)
    projections, products = 5 * 8 * (3 * 8 + 8), 2 * 5 * 5 * 8
    assert macs(network, (5, 8)) == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_of_a_network_in_low_precision_are_counted_alike():
    assert macs(nn.Linear(10, 20).bfloat16(), (10,)) == 200


def test_counting_macs_leaves_the_network_and_the_generator_as_they_were():
    network = normalised()
    before, state = copied(network), torch.get_rng_state()
    assert macs(network, (4,)) == 12
    assert same_as_before(network, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_cannot_take_one_sample_is_counted_on_two():
    assert macs(Squeezes(), (4,)) == macs(nn.Linear(4, 3), (4,)) == 12
    statistics = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert macs(statistics, (4,)) == 12


def test_a_network_that_does_not_run_has_no_count_and_no_latency_and_ends_nothing():
    assert macs(Fails(), (4,)) is None
    times = latency({"a": Fails(), "b": Squeezes(), "c": nn.Linear(4, 3)}, (4,), runs=1)
    assert times["a"] is times["b"] is None
    assert times["c"].median_ms > 0
    assert latency({"a": Fails()}, (4,), runs=1) == {"a": None}


def test_the_fused_attention_is_back_after_an_error():
    assert macs(Fails(), (4,)) is None
    assert torch.backends.mha.get_fastpath_enabled()


def test_file_bytes_are_those_of_the_file_on_disk(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, tmp_path / "network.safetensors")
    assert file_bytes(network) == (tmp_path / "network.safetensors").stat().st_size


def test_a_shared_tensor_counts_under_each_name_and_a_buffer_that_is_not_saved_not_at_all():
    network = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False))
    apart = file_bytes(network)
    network[1].weight = network[0].weight
    network.register_buffer("scratch", torch.zeros(10000), persistent=False)
    assert file_bytes(network) == apart > 2 * 50 * 50 * 4


def test_latency_takes_turns_after_a_warm_up(load_unknown):
    log: list[str] = []
    times = latency({"a": Recorder("a", log), "b": Recorder("b", log)}, (3,), runs=12, warmup=2)
    assert log == ["a", "b"] * 15  # one to see that they run
    assert {name: time.runs for name, time in times.items()} == {"a": 12, "b": 12}


def test_latency_is_the_median_and_95th_percentile_of_one_forward_in_milliseconds(clock):
    times = latency(
        {"slow": Rests(clock, *range(101, -1, -1)), "fast": Rests(clock, 7)},
        (3,),
        runs=101,
        warmup=0,
        seconds=60,
    )
    assert times == {"slow": Latency(50.0, 95.0, 101), "fast": Latency(7.0, 7.0, 101)}


def test_latency_of_a_real_network_takes_time():
    time = latency({"a": nn.Linear(200, 200)}, (200,), runs=10, warmup=1)["a"]
    assert 0 < time.median_ms <= time.p95_ms


def test_latency_stops_when_its_seconds_are_over(clock):
    network = Rests(clock, 10)
    assert latency({"a": network}, (3,), runs=1000, warmup=1000, seconds=2.0)["a"].runs in (159, 160)
    assert network.runs in (200, 201)  # the warm-up gets 400 of the 2000 ms


def test_latency_does_at_least_ten_rounds_and_one_to_warm_up(clock):
    network = Rests(clock, 10000)
    found = latency({"a": network}, (3,), runs=1000, warmup=1000)["a"]
    assert found == Latency(10000.0, 10000.0, 10)
    assert network.runs == 1 + 1 + 10


def test_latency_leaves_the_network_as_it_was_and_fit_for_training():
    network = normalised()
    before = copied(network)
    latency({"a": network}, (4,), runs=2)
    assert same_as_before(network, before)
    network(torch.randn(4, 4)).sum().backward()
    assert network[0].weight.grad is not None


def test_what_a_network_keeps_of_a_timed_forward_can_be_trained_through():
    network = Remembers()
    latency({"a": network}, (3,), runs=1)
    network(torch.zeros(1, 3)).sum().backward()
    assert network.scale.grad is not None


def test_latency_waits_for_a_device_after_each_forward(monkeypatch, load_unknown):
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    latency({"a": nn.Linear(3, 2, device="meta"), "b": nn.Linear(3, 2)}, (3,), runs=2, warmup=1)
    assert waits == [torch.device("meta")] * 3


@pytest.mark.parametrize(
    ("cores", "attempts", "kept", "disturbed"),
    [
        ((0.0,), 1, 10.0, False),
        ((0.2,), 1, 10.0, False),
        ((3.0, 0.1), 2, 20.0, False),
        ((3.0, 1.0, 2.0), 3, 20.0, True),
        ((1.0, 2.0, 3.0), 3, 10.0, True),
    ],
)
def test_latency_is_measured_again_while_others_are_busy_and_marked_where_they_stay_so(
    clock, monkeypatch, cores, attempts, kept, disturbed
):
    monkeypatch.setattr(machine, "read", Load(clock, *cores))
    times = [10] + [10] * 13 + [20] * 13 + [30] * 13  # one to see that it runs, and one to warm up an attempt
    network = Rests(clock, *times)
    found = latency({"a": network}, (3,), runs=12, warmup=1)["a"]
    assert network.runs == 1 + 13 * attempts
    assert (found.median_ms, found.others_cores > QUIET) == (kept, disturbed)
    assert found.others_cores == pytest.approx(min(cores[:attempts]))
    assert attempts <= ATTEMPTS


def test_the_load_is_watched_for_long_enough_to_be_seen(clock, monkeypatch):
    monkeypatch.setattr(machine, "read", Load(clock, 0.0))
    latency({"a": Rests(clock, 0)}, (3,), runs=10)
    assert clock.milliseconds == round(1e3 * WATCHED)


def test_a_machine_that_says_nothing_of_its_load_is_not_waited_for(clock):
    found = latency({"a": Rests(clock, 0)}, (3,), runs=10)["a"]
    assert (found.others_cores, clock.milliseconds) == (None, 0)


def test_latency_runs_in_eval_mode_without_gradients_and_restores_the_modes():
    network, seen = nn.Sequential(nn.Linear(3, 2), nn.Dropout()), []
    network[1].eval()
    network.register_forward_hook(lambda module, _, output: seen.append((module.training, output.requires_grad)))
    latency({"student": network}, (3,), runs=2, warmup=1)
    assert set(seen) == {(False, False)}
    assert network.training
    assert not network[1].training
