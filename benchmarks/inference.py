"""Inference of one model: ONNX Runtime against torch eager, torch.compile and OpenVINO, on a CPU or a GPU.

    python -m benchmarks.inference                          # one thread; --threads 2, --architecture table3
    python -m benchmarks.inference --device cuda            # fp32, TF32 and fp16; every node on CUDA, or it fails

ST-DAC with 2 STN at full width: random weights, BatchNorm calibrated on scikit-learn's digits. In each round every
contender runs once, in turn, so that a busy machine slows all of them; ratios are taken within a round. Prints Markdown
and writes benchmarks/results/inference-DEVICE-ARCHITECTURE-THREADS.json. OpenVINO takes part where it is installed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

Run = Callable[[], Any]
Clock = Callable[[], float]
RESULTS = Path(__file__).parent / "results"
BASELINE = "torch.compile"
ROUND_S = 0.25  # a contender's turn takes at least this long, or one call


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of every contender, on a CPU")
    parser.add_argument("--architecture", choices=["code", "table3"], default="code")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of one thread, where others work"
    )
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before torch and onnxruntime are there
    sizes = arguments.batches or ([1, 64, 256, 1024] if arguments.device == "cpu" else [256, 1024, 4096])
    model = Model(arguments.architecture)
    prepare = cpu_contenders if arguments.device == "cpu" else cuda_contenders
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    times = {size: measure(prepare(model, size, arguments.threads), arguments.rounds, clock) for size in sizes}
    report = {
        "what": "seconds a batch by batch size and contender, one value a round",
        "model": {"architecture": arguments.architecture, "multiply_adds": model.macs, "parameters": model.parameters},
        "threads": arguments.threads,
        "clock": arguments.clock,
        "limits": limits(arguments.threads, clock) if arguments.device == "cpu" else {},
        "times": times,
    } | about(arguments.device)
    path = RESULTS / f"inference-{arguments.device}-{arguments.architecture}-{arguments.threads}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(times))
    if arguments.device == "cpu":
        print("\n" + bounds(report))
    print(f"\n{report['device']}, {report['versions']}, commit {report['commit']}; wrote {path}")


class Model:
    """The model, its ONNX files, and what it costs. graph: (N, 1, 28, 28) uint8 -> cluster, confidence, scores."""

    def __init__(self, architecture: str) -> None:
        import torch

        from export.convert.half import halve
        from export.convert.quantize import quantize
        from export.convert.to_onnx import Graph, convert, silence
        from stdac.data import load
        from stdac.methods import resolve
        from stdac.methods.method import count_forward
        from stdac.model_file import ModelConfig
        from stdac.networks import calibrate

        torch.manual_seed(0)
        trial = resolve({"dataset": "digits", "params": {"stn": 2, "architecture": architecture}})
        config = ModelConfig(trial, (1, 28, 28))
        net = config.build().eval()
        self.images = load("digits").images
        calibrate(net, [torch.from_numpy(self.images[:1000]).float() / 255])
        self.graph = Graph(net).eval()
        self.macs = count_forward(config.build(), config.shape)
        self.parameters = sum(p.numel() for p in net.parameters())
        fp32 = convert(self.graph, config)
        with silence():
            int8 = quantize(fp32, self.images[:512])
        self.files = {"fp32": fp32, "fp16": halve(fp32), "int8": int8}
        self.files = {name: proto.SerializeToString() for name, proto in self.files.items()}

    def batch(self, size: int) -> Any:
        """The first images, over and over, (size, 1, 28, 28) uint8."""
        import numpy as np

        return np.ascontiguousarray(self.images[np.arange(size) % len(self.images)])


def cpu_contenders(model: Model, size: int, threads: int) -> dict[str, Run]:
    """A call of each contender on a batch, by name."""
    import torch

    from export.runtime import open_session

    torch.set_num_threads(threads)
    x = model.batch(size)
    tensor = torch.from_numpy(x)
    compiled = torch.compile(model.graph, dynamic=False)
    calls: dict[str, Run] = {"torch eager": lambda: model.graph(tensor), BASELINE: lambda: compiled(tensor)}
    openvino = openvino_call(model.files["fp32"], x, threads)
    if openvino is not None:
        calls["OpenVINO fp32"] = openvino
    for precision in ("fp32", "int8"):
        session, _ = open_session(model.files[precision], Path(precision), "cpu")
        calls[f"ONNX Runtime {precision}"] = partial(session.run, None, {"images": x})
    return calls


def openvino_call(file: bytes, x: Any, threads: int) -> Run | None:
    """OpenVINO on the same ONNX file, in float32; None, with the reason printed, where it is not installed."""
    try:
        import openvino  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        print("OpenVINO takes no part: pip install openvino", file=sys.stderr)
        return None
    core = openvino.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(BytesIO(file)), "CPU", hints).create_infer_request()
    return lambda: request.infer({"images": x})


def cuda_contenders(model: Model, size: int, threads: int) -> dict[str, Run]:
    """A call of each contender on a batch that lies on the GPU and stays there; each ends when the GPU is done."""
    import onnxruntime
    import torch

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    torch._dynamo.reset()  # past eight compilations of one function torch would go on eagerly
    x = torch.from_numpy(model.batch(size)).cuda()
    graph = model.graph.cuda()
    calls: dict[str, Run] = {}
    for name, tf32, half in (("fp32", False, False), ("TF32", True, False), ("fp16", True, True)):
        compiled = torch.compile(graph, dynamic=False)
        calls[f"{BASELINE} {name}"] = torch_on_cuda(compiled, x, tf32, half)
        calls[f"{BASELINE} {name}"]()  # compiled under its own settings
        calls[f"ONNX Runtime {name}"] = session_on_cuda(model.files["fp16" if half else "fp32"], x, tf32)
    return calls


def torch_on_cuda(compiled: Any, x: Any, tf32: bool, half: bool) -> Run:
    """A call of the compiled graph; half: autocast, which leaves the spatial transformers in float32."""
    import torch

    def run() -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.autocast("cuda", torch.float16, enabled=half):
            compiled(x)
        torch.cuda.synchronize()

    return run


def session_on_cuda(file: bytes, x: Any, tf32: bool) -> Run:
    """A call of a session that has no other provider to fall back to: it fails where a node has no CUDA kernel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    cuda = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": str(int(tf32))}
    session = onnxruntime.InferenceSession(file, options, providers=[("CUDAExecutionProvider", cuda)])
    binding = session.io_binding()
    binding.bind_input("images", "cuda", 0, "uint8", tuple(x.shape), x.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def measure(calls: dict[str, Run], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds a call of each contender, a value a round."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        repeats = {name: warm_up(call) for name, call in calls.items()}
        for _ in range(rounds):
            for name, call in calls.items():
                began = clock()
                for _ in range(repeats[name]):
                    call()
                times[name].append((clock() - began) / repeats[name])
    return times


def warm_up(call: Run) -> int:
    """Call three times; how many calls fill a turn."""
    seconds = [timed(call, time.perf_counter) for _ in range(3)]
    return max(1, round(ROUND_S / seconds[-1]))


def table(times: dict[int, dict[str, list[float]]]) -> str:
    """Images a second, and how many times torch.compile's in the same rounds: median (quartiles)."""
    names = list(next(iter(times.values())))
    lines = ["| | " + " | ".join(f"batch {size}" for size in times) + " |", "|---" * (len(times) + 1) + "|"]
    for name in names:
        cells = [f"{size / statistics.median(t[name]):,.0f}/s, {ratio(t, name)}" for size, t in times.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(times: dict[str, list[float]], name: str) -> str:
    """torch.compile's time over this contender's, at the same precision where there are several: median (quartiles)."""
    baseline = BASELINE if BASELINE in times else f"{BASELINE} {name.rsplit(maxsplit=1)[-1]}"
    ratios = [b / t for b, t in zip(times[baseline], times[name], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f}× ({low:.2f}–{high:.2f})"


def limits(threads: int, clock: Clock) -> dict[str, float]:
    """The rates of this machine in a large float32 matrix product, and in reading memory past the caches."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    wide = torch.randn(64_000_000)
    products = min(timed(lambda: a.numpy() @ b.numpy(), clock) for _ in range(9))
    reading = min(timed(wide.sum, clock) for _ in range(9))
    return {"gflops": 2 * 2048**3 / products / 1e9, "read_gb_s": wide.numel() * 4 / reading / 1e9}


def timed(call: Run, clock: Clock) -> float:
    """Seconds of a call."""
    began = clock()
    call()
    return clock() - began


def bounds(report: dict[str, Any]) -> str:
    """How fast float32 is at the rates of `limits`, for the same sums and with every weight read once a batch."""
    model, limit = report["model"], report["limits"]
    lines = [f"limits: {limit['gflops']:.0f} GFLOP/s in a matrix product, {limit['read_gb_s']:.1f} GB/s read"]
    for size, times in report["times"].items():
        least = max(
            2 * model["multiply_adds"] * size / limit["gflops"] / 1e9,
            4 * model["parameters"] / limit["read_gb_s"] / 1e9,
        )
        best = statistics.median(times[BASELINE]) / least
        lines.append(f"batch {size}: {least * 1e3:.1f} ms in float32 at these rates, {best:.2f}× {BASELINE}")
    return "\n".join(lines)


def about(device: str) -> dict[str, Any]:
    """Provenance: when, with what, on what."""
    import torch

    from stdac.machine import read_commit, read_cpu_name, read_version

    packages = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "onnx", "numpy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": read_commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{read_cpu_name()} ({cpu_model()})",
        "versions": {name: version for name in packages if (version := read_version(name))},
    }


def cpu_model() -> str:
    """Family, model and the vector instructions that matter, as the kernel tells them."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if flag in values["flags"].split()]
    return f"family {values['cpu family']} model {values['model']}, {', '.join(wanted)}"


if __name__ == "__main__":
    main()
