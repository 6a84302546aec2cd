"""Where each millisecond of our training step and label pass goes: torch's profiler, sorted into a few parts.

On a CPU compiled loops are named after the operations that were fused into them, so a loop that samples and normalises
counts once, for the first part in PARTS whose pattern its name matches. On a GPU these are the device's kernels.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import MACRO_BATCH, Ours, Setting, ready, synchronize
from stdac.compiling import set_compiler
from stdac.step import set_precision

STEPS = 8
PARTS = {
    "Adam": r"adam|optimizer",
    "convolutions of the localisation nets": r"convolution.*\bkernel 5\b",
    "convolutions": r"^aten::(mkldnn_|cudnn_)?convolution|fprop|dgrad|wgrad|implicit|conv2d|winograd",
    "dense layers of the localisation nets, grids": r"(mm|linear)\b.*\bsmall\b",
    "dense layers": r"^aten::(add)?mm|linear|gemm|nvjet|cutlass|cublas",
    "augmentation": r"_gather_|uniform|^aten::(gather|rand)",
    "sampling (and what is fused with it)": r"grid_sampler",
    "batch norm, pooling, ReLU, dropout": r"batch_norm|batchnorm|var_mean|pool|relu|dropout|bernoulli",
    "tanh, losses": r"tanh|softmax",
}
REST = "copies, wrappers, the rest"
Parts = dict[str, dict[str, float]]  # part -> "forward", "backward" -> ms


def profile_ours(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a step and of a label pass by part, and the longest operators."""
    import torch._inductor.config as inductor

    inductor.cpp.enable_kernel_profile = True
    with set_precision(setting.precision), set_compiler():
        ours = ready("ours", setting)
        assert isinstance(ours, Ours)
        dense = len(ours.label_pass.net.get_parameter("dense1.weight"))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device != "cpu" else [])]
        with profile(activities=activities, record_shapes=True) as step:
            ours.steps(STEPS)
            synchronize(setting.device)
        with profile(activities=activities, record_shapes=True) as label:
            ours.label()
            synchronize(setting.device)
    return {
        "step": parts(step, STEPS, dense),
        "label": parts(label, 1, dense),
        "operators": operators(step, STEPS),
        "images": {"step": 32, "label": MACRO_BATCH},
    }


def parts(taken: profile, n: int, dense: int) -> Parts:
    """Milliseconds by part and direction, of one of n."""
    result: Parts = {part: {"forward": 0.0, "backward": 0.0} for part in [*PARTS, REST]}
    for event, microseconds in own_times(taken):
        chain = list(ancestry(event))
        direction = "backward" if any("Backward" in name or "autograd" in name for name in chain[1:]) else "forward"
        result[part_of(described(event, dense), chain)][direction] += microseconds / n / 1e3
    return result


def own_times(taken: profile) -> Iterator[tuple[FunctionEvent, float]]:
    """Each event and the microseconds it took without those below it: of kernels where there are any."""
    events = taken.events()
    assert events is not None
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    for event in kernels or events:
        yield event, event.self_device_time_total if kernels else event.self_cpu_time_total


def ancestry(event: FunctionEvent | None) -> Iterator[str]:
    """An event's name, its caller's, and so on."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def described(event: FunctionEvent, dense: int) -> str:
    """An event's name, with what its shapes tell: kernels of 5 belong to localisation nets, so do small products."""
    shapes: list[list[int]] = [shape for shape in event.input_shapes or [] if shape]  # type: ignore[misc]
    if "convolution" in event.name and any(len(shape) == 4 and shape[2:] == [5, 5] for shape in shapes):
        return f"{event.name} kernel 5"
    if event.name.endswith("mm") and not any(dense in shape for shape in shapes):
        return f"{event.name} small"
    return event.name


def part_of(name: str, chain: list[str]) -> str:
    """The part that an event belongs to, by its name; everything within the optimiser is Adam's."""
    if any("Optimizer" in above for above in chain):
        return "Adam"
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name, re.IGNORECASE)), REST)


def operators(taken: profile, n: int, longest: int = 12) -> dict[str, float]:
    """The operators that take longest, and their milliseconds, of one of n."""
    total: Counter[str] = Counter()
    for event, microseconds in own_times(taken):
        total[event.name] += microseconds / n / 1e3  # type: ignore[assignment]  # a Counter of floats
    return dict(total.most_common(longest))
