"""Which CUDA kernels an onnxruntime-gpu has, read off its wheel without a GPU: the table in export/convert/kernels.py.

    pip download --no-deps onnxruntime-gpu==1.31.1      # and others; of the Python version that runs this
    python -m benchmarks.cuda_kernels onnxruntime_gpu-*.whl

prints, for opset 18, the kernels that every one of the wheels has. The provider's library loads only where CUDA's
libraries do: stand-ins are compiled that have the functions it names, none of which is called to register kernels.
Needs gcc, nm, readelf and onnx. Wheels before 1.23 read their host while they load, and crash beside stand-ins.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from onnx import defs

OPSET = 18
# fmt: off
OPERATORS = (
    "Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Exp",
    "Expand", "Flatten", "Gemm", "GlobalAveragePool", "GridSample", "Identity", "LeakyRelu", "Log", "MatMul", "Max",
    "MaxPool", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze",
)
# fmt: on
OPEN = 2**31 - 1  # a kernel without a last version serves the version it names, and no later one
TYPES = ("float", "float16", "int32", "int64", "int8", "uint8")
CUDA_LIBRARY = re.compile(r"NEEDED\).*\[(lib(?:cu|nv)[^]]*)\]")
LIST_KERNELS = """
import json
from onnxruntime.capi import onnxruntime_pybind11_state as state
kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CUDAExecutionProvider" and k.domain == ""]
print(json.dumps([(k.op_name, k.version_range, k.type_constraints) for k in kernels]))
"""

Kernel = tuple[str, tuple[int, int], dict[str, list[str]]]
Combination = tuple[str, int, tuple[tuple[str, str], ...]]


def main(wheels: list[str]) -> None:
    """Print the kernels that all wheels have in common, an operator and its types a line."""
    common = set.intersection(*(combinations(kernels_of(Path(wheel))) for wheel in wheels))
    by_operator: dict[tuple[str, int], list[dict[str, str]]] = defaultdict(list)
    for name, since, types in common:
        by_operator[name, since].append(dict(types))
    for (name, since), choices in sorted(by_operator.items()):
        for choice in merged(sorted(choices, key=str)):
            print(name, since, *(f"{parameter}={','.join(sorted(values))}" for parameter, values in choice.items()))


def kernels_of(wheel: Path) -> list[Kernel]:
    """The kernels of the CUDA provider for ONNX's own operators: name, first and last version, types by parameter."""
    with TemporaryDirectory() as folder:
        with ZipFile(wheel) as archive:
            archive.extractall(folder)
        providers = [str(path) for path in Path(folder).glob("onnxruntime/capi/libonnxruntime_providers_*.so")]
        make_stand_ins(Path(folder), providers)
        environment = os.environ | {"PYTHONPATH": folder, "LD_LIBRARY_PATH": folder}
        words = [sys.executable, "-c", LIST_KERNELS]
        listed = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    kernels: list[Kernel] = json.loads(listed.stdout)
    return kernels


def make_stand_ins(folder: Path, providers: list[str]) -> None:
    """Compile a library for each one of NVIDIA's that the providers need, with every function that they name."""
    needs = subprocess.run(["readelf", "-d", *providers], capture_output=True, text=True, check=True).stdout
    undefined = subprocess.run(["nm", "-D", "-u", *providers], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in undefined.splitlines() if " U " in line and "GLIBC" not in line]
    functions = {name.split("@")[0] for name in symbols if re.match(r"cu|__cuda|nv|create|get", name)}
    source = folder / "stand_in.c"
    source.write_text("static char zeros[4096];\n" + "".join(map(stand_in, sorted(functions))))
    for name in set(CUDA_LIBRARY.findall(needs)):
        versions = folder / "versions.map"
        versions.write_text(f"{name} {{ *; }};")
        words = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}"]
        subprocess.run([*words, "-o", str(folder / name), str(source)], check=True)


def stand_in(function: str) -> str:
    """A function in C that reports success, or points to zeros where the result is looked into."""
    pointer = re.search("RegisterFatBinary$|String|Name", function)
    return f"void *{function}(void) {{ return {'zeros' if pointer else '0'}; }}\n"


def combinations(kernels: Iterable[Kernel]) -> set[Combination]:
    """Every combination of TYPES for which one of OPERATORS, at its version in OPSET, has a kernel."""
    current = {name: defs.get_schema(name, OPSET).since_version for name in OPERATORS}
    found = set()
    for name, (first, last), types in kernels:
        since = current.get(name, 0)
        if first == since or (first < since <= last < OPEN):
            short = [[t[7:-1] for t in values if t[7:-1] in TYPES] for values in types.values()]  # tensor(float)
            found |= {(name, since, tuple(zip(types, choice, strict=True))) for choice in product(*short)}
    return found


def merged(choices: list[dict[str, str]]) -> list[dict[str, set[str]]]:
    """The choices as one set of types a parameter where they are independent, else one by one."""
    together = {parameter: {types[parameter] for types in choices} for parameter in choices[0]}
    if math.prod(map(len, together.values())) == len(choices):
        return [together]
    return [{parameter: {value} for parameter, value in types.items()} for types in choices]


if __name__ == "__main__":
    main(sys.argv[1:])
