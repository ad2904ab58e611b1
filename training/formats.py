"""File formats of the model: writing each of them, and reading it back for the comparison."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime
import torch
from torch import Tensor

from bundle.manifest import Format, Precision
from bundle.postprocess import Probabilities
from bundle.preprocess import Pixels
from training.errors import ExportError
from training.models import Servable

OPSET: Final = 20
SUFFIXES: Final[dict[Format, str]] = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "ort": ".ort"}

Infer = Callable[[Pixels], Probabilities]


def write_onnx(servable: Servable, example: Tensor, path: Path) -> None:
    """Write one self-contained ONNX file with a dynamic axis named `batch`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(
            servable,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with this machine's paths
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_torchscript(servable: Servable, example: Tensor, path: Path) -> None:
    """Write traced, frozen TorchScript."""
    with warnings.catch_warnings():
        # torch.jit is deprecated, but TorchServe and Triton's PyTorch backend need it
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(servable, example))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)


def write_pt2(servable: Servable, example: Tensor, path: Path) -> None:
    """Write a torch.export archive, PyTorch's successor to TorchScript."""
    program = torch.export.export(servable, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # this machine's paths
    torch.export.save(program, path)


def write_ort(source: Path, path: Path) -> None:
    """Convert an ONNX file to onnxruntime's own format, for its mobile builds.

    Applies only the optimisations that do not depend on the processor.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def read_onnx(path: Path, threads: int = 0) -> Infer:
    """Load an ONNX or ORT file in onnxruntime; `threads` 0 uses all cores.

    Raises:
        ExportError: it has no dynamic axis named `batch`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batch_axis = session.get_inputs()[0].shape[0]
    if batch_axis != "batch":
        raise ExportError(f"{path.name}: the first axis is {batch_axis!r}, not a dynamic axis named 'batch'")

    def infer(pixels: Pixels) -> Probabilities:
        probabilities: Probabilities = session.run(["probabilities"], {"image": pixels})[0]
        return probabilities

    return infer


def read_openvino(path: Path, precision: Precision, threads: int = 0) -> Infer:
    """Load an ONNX file in OpenVINO, which computes it in fp32 or bf16; `threads` 0 uses all cores."""
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    model = core.read_model(path)
    requests: dict[int, Any] = {}

    def infer(pixels: Pixels) -> Probabilities:
        size = len(pixels)
        if size not in requests:  # as in serving, with a fixed batch size, which is faster
            model.reshape(pixels.shape)
            requests[size] = core.compile_model(model, "CPU", properties).create_infer_request()
        requests[size].get_input_tensor().data[:] = pixels
        requests[size].infer()
        probabilities: Probabilities = requests[size].get_output_tensor().data.copy()
        return probabilities

    return infer


def bf16_hindrance() -> str | None:
    """Why OpenVINO cannot compute in bf16 here; None if it can."""
    try:
        import openvino
    except ModuleNotFoundError:
        return "openvino is not installed"
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this processor has neither avx512_bf16 nor amx_bf16"
    return None


def read_torchscript(path: Path) -> Infer:
    """Load a TorchScript file in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return lambda pixels: run_eager(module, pixels)


def read_pt2(path: Path) -> Infer:
    """Load a torch.export archive in torch."""
    module = torch.export.load(path).module()
    return lambda pixels: run_eager(module, pixels)


def read_model(format_: Format, path: Path, precision: Precision = "fp32", threads: int = 0) -> Infer:
    """Load a file in the runtime of its format and precision.

    `threads` applies to onnxruntime and OpenVINO, where 0 uses all cores; torch's number of threads is a setting of the
    process.
    """
    if (format_, precision) == ("onnx", "bf16"):
        return read_openvino(path, precision, threads)
    if format_ == "torchscript":
        return read_torchscript(path)
    return read_pt2(path) if format_ == "pt2" else read_onnx(path, threads)


@torch.inference_mode()
def run_eager(module: Callable[[Tensor], Tensor], pixels: Pixels) -> Probabilities:
    """Run a torch module: uint8 `[N, 3, H, W]` -> float32 `[N, classes]`."""
    probabilities: Probabilities = module(torch.from_numpy(pixels)).numpy()
    return probabilities
