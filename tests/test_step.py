"""The training step: compiled once an architecture, captured once a shape, and the same numbers either way."""

import re
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stdac import compiling
from stdac import machine as machine_module
from stdac import step as step_module
from stdac.compiling import compile_once
from stdac.data import Dataset, load
from stdac.dense import apply_dense
from stdac.errors import StdacError
from stdac.machine import Machine
from stdac.methods import dac_star, resolve, st_dac
from stdac.methods.pairwise import compare_all, normalize
from stdac.run import Scorer, fit
from stdac.step import ReplayedStep, TrainingStep, autocast, check_precision, set_precision
from stdac.train import capture, restore

SMALL = {
    "method": "st-dac",
    "dataset": "digits",
    "epochs": 1,
    "limit": 100,
    "image_size": 16,
    "params": {"width": 0.05, "macro_batch": 50, "batch": 16},
}


def small(**changes: object) -> dict[str, object]:
    """A trial of a second."""
    params = SMALL["params"] | changes.pop("params", {})  # type: ignore[operator]
    return SMALL | changes | {"params": params}


def losses(trial_spec: dict[str, object], machine: Machine) -> list[float]:
    """The losses of a trial's epochs."""
    trial, dataset = resolve(trial_spec), load("digits", limit=100, image_size=16)
    scorer = Scorer(trial, Dataset(dataset.images, None), "cpu")
    fit(trial, dataset.images, scorer, machine, {})
    return [row["loss"] for row in scorer.rows if row.get("loss") is not None]


def noisy_loss(net: nn.Module, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Draws random numbers, as augmentation and dropout do."""
    error = (net(x + torch.rand_like(x)) - target).square().mean()
    return error, {"error": error, "size": x.square().mean()}


def network_and_optimizer(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    if kind == "adam":
        return net, torch.optim.Adam(net.parameters(), lr=0.01, fused=True)
    if kind == "rmsprop":
        return net, torch.optim.RMSprop(net.parameters(), lr=0.01)
    return net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "sgd"])
def test_a_replayed_step_gives_the_numbers_of_an_ordinary_one(kind: str) -> None:
    sizes = [8] * 6 + [5] * 6 + [8] * 3 + [3]
    torch.manual_seed(1)
    target = torch.rand(1, 2)
    batches = [(torch.rand(n, 4), target) for n in sizes]
    results = []
    for make in (TrainingStep, partial(ReplayedStep, capture=lambda launch: launch)):
        net, optimizer = network_and_optimizer(kind)
        step = make(partial(noisy_loss, net), optimizer)
        torch.manual_seed(2)
        for number, batch in enumerate(batches):
            if number == 9:
                optimizer.param_groups[0]["lr"] = 0.02
            step(*batch)
        results.append((step.means(), [p.detach().clone() for p in net.parameters()]))
    assert results[0][0] == results[1][0] and set(results[0][0]) == {"loss", "error", "size"}
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_shape_is_captured_once_and_few_shapes_are_held() -> None:
    net, optimizer = network_and_optimizer("adam")
    captures = []

    def capture_(launch):
        captures.append(1)
        return launch

    step = ReplayedStep(partial(noisy_loss, net), optimizer, capture=capture_)
    for n in (8, 8, 8):
        step(torch.rand(n, 4), torch.zeros(1, 2))
    assert not captures
    for n in [8] * 5 + [9, 10, 11, 12, 13, 14] * 5:
        step(torch.rand(n, 4), torch.zeros(1, 2))
    assert len(captures) == step_module.SHAPES


def test_a_tensor_that_stays_the_same_is_not_copied_again() -> None:
    net, optimizer = network_and_optimizer("sgd")
    step = ReplayedStep(partial(noisy_loss, net), optimizer, capture=lambda launch: launch)
    target = torch.zeros(1, 2)
    for _ in range(5):
        step(torch.rand(8, 4), target)
    replay = next(iter(step.replays.values()))
    with torch.no_grad():
        replay.buffers[1].fill_(7)
    step(torch.rand(8, 4), target)
    assert (replay.buffers[1] == 7).all()
    step(torch.rand(8, 4), target.clone())
    assert (replay.buffers[1] == 0).all()


def test_a_step_that_cannot_be_captured_is_taken_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    net, optimizer = network_and_optimizer("adam")

    def refuse(launch):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    step = ReplayedStep(partial(noisy_loss, net), optimizer, capture=refuse)
    for _ in range(8):
        step(torch.rand(8, 4), torch.zeros(1, 2))
    assert step.steps == 8 and step.means()["error"] > 0
    text = capsys.readouterr().err
    assert text.count("cannot be captured") == 1 and "not permitted when stream is capturing)" in text


def test_trials_of_one_architecture_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's front end alone: what is traced anew would be compiled anew."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    compile_once.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(machine_module, "find_fault", lambda _kind: None)
    frames = []
    try:
        for spec in (
            small(seed=0),
            small(seed=1, params={"lr": 0.01}),
            small(seed=2),
            small(seed=0, params={"stn": 1}),
            small(seed=5),
        ):
            losses(spec, Machine("cpu", "on", 1))
            frames.append(counters["frames"]["total"])
    finally:
        compile_once.cache_clear()
        torch._dynamo.reset()
    assert frames[0] > 0 and frames[0] == frames[1] == frames[2]
    assert frames[3] == 2 * frames[0] == frames[4]


def test_products_round_to_tf32_only_where_the_trial_says_so() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("float32", False), ("tf32", True), ("bfloat16", True)):
        with pytest.raises(ZeroDivisionError), set_precision(precision):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
            raise ZeroDivisionError
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_an_unknown_precision_is_told_with_the_known_ones() -> None:
    with pytest.raises(StdacError, match=r"got precision = 'fp8', expected one of .*float32.*tf32.*bfloat16"):
        check_precision("fp8")
    for method in ("st-dac", "dac-star"):
        with pytest.raises(StdacError, match=r"^got precision = 'half', expected one of float32, tf32, bfloat16$"):
            resolve({"method": method, "dataset": "digits", "params": {"precision": "half"}})


@pytest.mark.parametrize("method", ["st-dac", "dac-star"])
def test_bfloat16_trains_and_leaves_comparisons_of_images_exact(method: str) -> None:
    changes = {"precision": "bfloat16"}
    spec = SMALL | {"method": method, "image_size": 22, "epochs": 2, "params": {"width": 0.1, "batch": 16} | changes}
    trial, dataset = resolve(spec), load("digits", limit=100, image_size=22)
    scorer = Scorer(trial, Dataset(dataset.images, None), "cpu")
    fit(trial, dataset.images, scorer, Machine("cpu", "off", 1), {})
    assert all(0 < row["loss"] < 100 for row in scorer.rows if row.get("loss") is not None)
    with autocast("bfloat16", torch.device("cpu")):
        z = normalize(torch.rand(8, 10))
        assert compare_all(z).dtype == torch.float32
    assert torch.allclose(compare_all(z), z @ z.T, atol=1e-6)


def test_a_checkpoint_of_captured_steps_resumes_where_nothing_is_captured() -> None:
    net, optimizer = network_and_optimizer("adam")
    noisy_loss(net, torch.rand(8, 4), torch.zeros(1, 2))[0].backward()
    optimizer.step()
    saved = capture(net, optimizer)
    for group in saved["optimizer"]["param_groups"]:
        group["capturable"] = True
    net, optimizer = network_and_optimizer("adam")
    restore(saved, net, optimizer)
    assert optimizer.param_groups[0]["capturable"] is False
    noisy_loss(net, torch.rand(8, 4), torch.zeros(1, 2))[0].backward()
    optimizer.step()
    assert int(next(iter(optimizer.state.values()))["step"]) == 2


class Devices(TorchDispatchMode):
    """Remembers where the tensors of every operation were."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        self.seen.setdefault(str(function), set()).update(x.device.type for x in tensors)
        return result


@pytest.mark.parametrize("method", [st_dac, dac_star])
def test_a_loss_takes_nothing_from_the_host_and_gives_nothing_to_it(
    method: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without content: a value that the host needs, or sends, would stop the capture of a CUDA graph."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    params = resolve({"dataset": "mnist", "method": method.__name__.split(".")[-1].replace("_", "-")}).params
    net = method.build(10, (1, 28, 28), params).net.to("meta")
    index, clean = torch.arange(32, device="meta"), torch.rand(100, 1, 28, 28, device="meta")
    labels, tau = torch.rand(100, 10, device="meta"), torch.rand((), device="meta")
    with Devices() as devices:
        method.loss(net, params, index, clean, labels, tau)[0].backward()
    assert len(devices.seen) > 30
    assert {name: found for name, found in devices.seen.items() if found - {"meta"}} == {}


@pytest.mark.parametrize("compiles", [False, True])
def test_onednns_products_are_those_of_a_linear_layer(compiles: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(50, 30), torch.randn(8, 50, requires_grad=True)
    by_onednn = torch.compile(apply_dense, backend="aot_eager") if compiles else apply_dense
    found = []
    for product in (by_onednn, nn.Linear.__call__):
        x.grad = None
        layer.zero_grad()
        product(layer, x).square().sum().backward()
        found.append([x.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# --- torch.compile is tried, and done without where it fails


@pytest.fixture
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not compiled anything; and again afterwards."""
    monkeypatch.setattr(compiling, "_faults", [])
    _forget_compiled()
    yield
    _forget_compiled()


def _forget_compiled() -> None:
    torch._dynamo.reset()
    compile_once.cache_clear()
    compiling._try_compiling.cache_clear()


def break_compiler(monkeypatch: pytest.MonkeyPatch, *, backward: bool) -> None:
    """A torch.compile that fails at the first gradient, or at once."""

    def fail(*_: object) -> None:
        raise RuntimeError("C++ compile error\nand more")

    backend = aot_autograd(fw_compiler=lambda graph, _inputs: graph, bw_compiler=fail) if backward else fail
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backward", [False, True])
def test_a_compiler_that_fails_when_it_is_tried_is_done_without(
    backward: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_compiler(monkeypatch, backward=backward)
    assert not Machine("cpu", "on").compiles(torch.device("cpu"), 0)
    assert not Machine("cpu", "auto").compiles(torch.device("cpu"), 1e15)
    assert not Machine("cpu", "auto").compiles(torch.device("cpu"), 0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    sentence = re.compile(r"torch.compile does not work here \(.*C\+\+ compile error\): training without torch.compile")
    assert all(map(sentence.fullmatch, said))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_does_not_compile_is_taken_all_the_same_with_the_same_random_numbers(
    backward: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = losses(small(), Machine("cpu", "off", 1))
    break_compiler(monkeypatch, backward=backward)
    monkeypatch.setattr(machine_module, "find_fault", lambda _kind: None)
    assert losses(small(), Machine("cpu", "on", 1)) == expected
    assert capsys.readouterr().err.count("training without torch.compile") == 1
    assert "C++ compile error" in compiling.find_fault("cpu")


@pytest.mark.usefixtures("fresh_compiler")
def test_an_error_of_the_loss_is_no_fault_of_the_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    net, optimizer = network_and_optimizer("sgd")
    step = TrainingStep(compiling.Compiled(partial(noisy_loss, net)), optimizer)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        step(torch.rand(8, 5), torch.zeros(1, 2))
    assert compiling._faults == [] and capsys.readouterr().err == ""


def test_compiling_leaves_the_settings_of_torchs_compiler_alone() -> None:
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    before = dynamo.recompile_limit, inductor.fallback_random, list(warnings.filters)
    with compiling.set_compiler():
        assert (dynamo.recompile_limit, inductor.fallback_random) == (compiling.ARCHITECTURES, True)
    assert (dynamo.recompile_limit, inductor.fallback_random, list(warnings.filters)) == before


# --- devices are tried as well


def test_cuda_graphs_are_off_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STDAC_CUDA_GRAPHS", raising=False)
    gpu = torch.device("cuda")
    assert not Machine("cuda", "on").graphs(gpu) and not Machine("cuda", "auto").graphs(gpu)
    monkeypatch.setenv("STDAC_CUDA_GRAPHS", "1")
    assert Machine("cuda", "auto").graphs(gpu)
    assert not Machine("cuda", "off").graphs(gpu) and not Machine("cpu", "on").graphs(torch.device("cpu"))


def test_a_gpu_that_torch_sees_and_cannot_use_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine_module, "find_device_fault", lambda name, _process: f"no kernel image for {name}")
    assert Machine("auto").torch_device() == torch.device("cpu")
    assert "cannot compute on it (no kernel image for cuda): going on on the CPU" in capsys.readouterr().err
    with pytest.raises(StdacError, match=r"'cuda:1', but torch cannot compute on it \(no kernel .*--device cpu"):
        Machine("cuda:1").torch_device()


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_a_device_that_is_not_here_is_one_sentence(device: str) -> None:
    if getattr(torch, device, None) is not None and getattr(torch, device).is_available():
        pytest.skip(f"there is {device} here")
    with pytest.raises(StdacError, match=f"^got device '{device}', but torch cannot compute on it"):
        Machine(device).torch_device()


def test_a_trial_leaves_threads_and_cudnn_as_they_were() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    with Machine("cpu", threads=before[0] + 1).prepared():
        assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == (before[0] + 1, True)
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == before
