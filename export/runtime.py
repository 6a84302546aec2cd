"""onnxruntime sessions on the provider that was asked for: proven when the model is loaded, not assumed."""

from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from stdac.cores import count_threads
from stdac.errors import StdacError


class Provider(NamedTuple):
    """An execution provider: onnxruntime's name of it, its options, those it falls back to, and where to get it."""

    name: str
    options: dict[str, str]
    before: tuple[str, ...]
    package: str


# TF32 would move scores by up to 5e-3; the export was verified to 1e-4.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}

PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", {}, (), "pip install 'stdac[cpu]'"),
    "cuda": Provider(
        "CUDAExecutionProvider", CUDA_OPTIONS, ("cpu",), "pip install 'stdac[gpu]' in place of 'stdac[cpu]'"
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        {"trt_fp16_enable": "0"},
        ("cuda", "cpu"),
        "pip install 'stdac[gpu]' in place of 'stdac[cpu]', and NVIDIA's tensorrt",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        {"device_type": "CPU"},
        ("cpu",),
        "pip install onnxruntime-openvino in place of onnxruntime",
    ),
}

WARNINGS, QUIET = 2, 4  # of onnxruntime's log levels; a library that is missing is said in our own words

GPU_PROVIDERS = frozenset({"cuda", "tensorrt"})


def open_session(model: bytes, path: Path, provider: str, *, shares_cpus: bool = False) -> tuple[Any, str]:
    """An onnxruntime session, and the provider that it really has: a key of PROVIDERS.

    provider: one of them, or "auto": cuda where it works, else cpu. A library that is missing leaves a session on the
    CPU with no more than a log line, so the session is asked where its nodes are. shares_cpus: threads that wait do not
    spin, which makes one image slower and leaves the CPUs to others. Raises StdacError where onnxruntime
    or the provider is missing or does not come up, or the bytes are not an ONNX model.
    """
    if provider not in ("auto", *PROVIDERS):
        raise StdacError(f"got provider {provider!r}, expected auto, {', '.join(PROVIDERS)}")
    ort = import_onnxruntime()
    there = set(ort.get_available_providers())
    if provider == "auto":
        session = _start_session(ort, model, path, "cuda", shares_cpus) if PROVIDERS["cuda"].name in there else None
        if session is not None:
            return session, "cuda"
        return _start_session(ort, model, path, "cpu", shares_cpus), "cpu"
    if PROVIDERS[provider].name not in there:
        raise StdacError(f"provider {provider} is not in this onnxruntime: {PROVIDERS[provider].package}")
    session = _start_session(ort, model, path, provider, shares_cpus)
    if session is None:
        _start_session(ort, model, path, "cpu", shares_cpus)  # a model that does not load anywhere is said first
        raise StdacError(
            f"provider {provider} did not come up: onnxruntime found no device for it, or no libraries of it that fit; "
            "install them or use --provider cpu"
        )
    return session, provider


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises StdacError that names the extra to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise StdacError("onnxruntime is not installed: pip install 'stdac[cpu]' (or 'stdac[gpu]')") from error
    return onnxruntime


def _start_session(ort: Any, model: bytes, path: Path, provider: str, shares_cpus: bool) -> Any:
    """A session on one provider; None where that does not come up. Raises StdacError where the CPU cannot load it."""
    wanted = PROVIDERS[provider]
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = count_threads()
    if shares_cpus:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # onnxruntime >= 1.24
    given = wanted.options | ({"num_of_threads": str(count_threads())} if provider == "openvino" else {})
    chosen = [(wanted.name, given), *(PROVIDERS[name].name for name in wanted.before)]
    ort.set_default_logger_severity(QUIET)
    try:
        with redirect_stdout(StringIO()):  # onnxruntime prints what it falls back to
            if provider in GPU_PROVIDERS and hasattr(ort, "preload_dlls"):  # onnxruntime >= 1.21
                ort.preload_dlls()
            session = ort.InferenceSession(model, options, providers=chosen)
    except Exception as error:  # onnxruntime's errors share no base but this
        if provider != "cpu":
            return None
        raise StdacError(f"{path} is not an ONNX file: expected the model.onnx that stdac export writes") from error
    finally:
        ort.set_default_logger_severity(WARNINGS)
    return session if _has_provider(session, wanted.name) else None


def _has_provider(session: Any, name: str) -> bool:
    """Whether a session has the provider, and any node of its graph is placed there."""
    if session.get_providers()[0] != name:
        return False
    placed = count_placements(session)
    return not placed or placed[name] > 0


def count_placements(session: Any) -> Counter[str]:
    """The number of nodes by provider; empty where this onnxruntime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    count: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        count[part.ep_name] += len(part.get_nodes())
    return count
