"""The manifest of a bundle: the single source of truth about an exported model.

Readers get frozen, validated objects. Unknown keys and unknown schema versions are rejected.
"""

from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Final = 2
READABLE_VERSIONS: Final = (1, SCHEMA_VERSION)
LEAST_GOLDEN: Final = 8
DEFAULT_TOLERANCE: Final = 1e-4

Resize = Literal["stretch", "crop", "pad"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
# torchscript: TorchScript. pt2: a torch.export archive. ort: onnxruntime's own format, which its mobile builds load.
Format = Literal["onnx", "torchscript", "pt2", "ort"]
# Of the computation. bf16: TorchScript has a file of its own; `onnx bf16` is the fp32 file, which OpenVINO computes in bf16.
# int8: weights and activations, with ranges calibrated on training images. int8-dynamic: weights of the dense layers,
# activation ranges found per request.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic"]


def _inside_the_bundle(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is not a path inside the bundle")
    return name


FileName = Annotated[str, AfterValidator(_inside_the_bundle)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageInput(_Part):
    """The model's input `image`, uint8 `[N, 3, height, width]`, RGB; and how an image of any size is resized to it.

    stretch: resize to height x width, without keeping the aspect ratio.
    crop:    resize the shorter side to `shorter_side`, then crop the centre height x width.
    pad:     resize the longer side to fit, then add black borders.
    """

    name: Literal["image"] = "image"
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NCHW"] = "NCHW"
    color: Literal["RGB"] = "RGB"
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: Resize = "stretch"
    filter: Filter = "bilinear"
    shorter_side: int | None = Field(default=None, ge=1, le=8192)

    @model_validator(mode="after")
    def _shorter_side_goes_with_crop(self) -> Self:
        if (self.resize == "crop") != (self.shorter_side is not None):
            raise ValueError("shorter_side belongs to resize = crop, which needs it")
        if self.shorter_side is not None and self.shorter_side < max(self.height, self.width):
            raise ValueError("shorter_side must not be less than height and width")
        return self


class ProbabilitiesOutput(_Part):
    """The model's output `probabilities`, float32 `[N, classes]`; each row sums to 1."""

    name: Literal["probabilities"] = "probabilities"
    dtype: Literal["float32"] = "float32"
    classes: int = Field(ge=2)


class File(_Part):
    """A file of the bundle."""

    file: FileName
    sha256: Sha256
    bytes: int = Field(ge=1)


class Artefact(File):
    """The model in one format and precision, with the export's comparison to eager PyTorch in fp32.

    tolerance:     an answer is right if every probability differs from the golden one by at most this much.
    accuracy_drop: fp32's accuracy minus this file's, as fractions, on `accuracy_inputs` labelled test inputs;
                   None for imported weights, whose labelled data is not available.
    latency_ms:    median time of one input in one thread on the exporting machine, in the format's runtime (onnxruntime,
                   torch; `onnx bf16`: OpenVINO).
    speedup:       the ONNX fp32 file's latency divided by this file's, both from one interleaved run.
    """

    format: Format
    precision: Precision = "fp32"
    max_abs_difference: float = Field(ge=0)
    top1_agreement: float = Field(ge=0, le=1)
    compared_inputs: int = Field(ge=1)
    tolerance: float = Field(default=DEFAULT_TOLERANCE, gt=0)
    accuracy_drop: float | None = Field(default=None, ge=-1, le=1)
    accuracy_inputs: int | None = Field(default=None, ge=1)
    latency_ms: float | None = Field(default=None, gt=0)
    speedup: float | None = Field(default=None, gt=0)

    @property
    def label(self) -> str:
        """The file's name, and what computes it if the name does not show it."""
        by_openvino = (self.format, self.precision) == ("onnx", "bf16")
        return f"{self.file} in bf16 by OpenVINO" if by_openvino else self.file


class Golden(_Part):
    """Encoded inputs, and the probabilities (float32 `[inputs, classes]`, .npy) that eager PyTorch gave for them."""

    inputs: tuple[File, ...] = Field(min_length=LEAST_GOLDEN)
    probabilities: File


class Origin(_Part):
    """Where the weights come from: a training run (`trained`) or published weights (`imported`)."""

    kind: Literal["trained", "imported"]
    source: str
    architecture: str
    dataset: str
    dataset_fingerprint: str | None = None
    seed: int | None = None
    epochs: int | None = None
    val_accuracy: float | None = Field(default=None, ge=0, le=1)
    test_accuracy: float | None = Field(default=None, ge=0, le=1)


class Manifest(_Part):
    """manifest.json."""

    schema_version: Literal[2] = SCHEMA_VERSION
    model: ModelName
    version: int = Field(ge=1)
    created: datetime
    labels: tuple[str, ...] = Field(min_length=2)
    input: ImageInput
    output: ProbabilitiesOutput
    artefacts: tuple[Artefact, ...] = Field(min_length=1)
    golden: Golden
    origin: Origin
    versions: dict[str, str]
    git_revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any) -> Any:
        """Read manifests of schema version 1, which called inputs pictures."""
        if not isinstance(content, dict) or content.get("schema_version") != 1:
            return content
        artefacts = [_renamed(entry, _VERSION_1_ARTEFACT) for entry in content.get("artefacts", ())]
        golden = _renamed(content.get("golden", {}), {"pictures": "inputs"})
        return content | {"schema_version": SCHEMA_VERSION, "artefacts": artefacts, "golden": golden}

    @model_validator(mode="after")
    def _labels_fit_the_output(self) -> Self:
        if len(self.labels) != self.output.classes:
            raise ValueError(f"{len(self.labels)} labels for {self.output.classes} classes")
        return self

    @property
    def files(self) -> tuple[File, ...]:
        """Every file whose sha256 the manifest has."""
        return (*self.artefacts, *self.golden.inputs, self.golden.probabilities)


_VERSION_1_ARTEFACT: Final = {"compared_pictures": "compared_inputs", "accuracy_pictures": "accuracy_inputs"}


def _renamed(content: Any, names: dict[str, str]) -> Any:
    """A JSON object with some keys renamed; anything else as it is."""
    if not isinstance(content, dict):
        return content
    return {names.get(key, key): value for key, value in content.items()}
