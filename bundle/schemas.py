"""The public answer and the public error, the same from all three servers (pydantic; JSON on the wire)."""

from pydantic import BaseModel, ConfigDict, Field


class ClassProbability(BaseModel):
    """One class with its probability."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(examples=["espresso"])
    class_id: int = Field(ge=0, examples=[967])
    probability: float = Field(ge=0, le=1.0001, examples=[0.87])


class Prediction(BaseModel):
    """The answer to one image: the `top_k` most probable classes, most probable first."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(examples=["efficientnet_lite0"])
    version: int = Field(ge=1, examples=[1])
    predictions: list[ClassProbability]

    @property
    def top(self) -> ClassProbability:
        """The most probable class."""
        return self.predictions[0]


class ImageResult(BaseModel):
    """One image of several: its classes, or why there are none."""

    model_config = ConfigDict(frozen=True)

    predictions: list[ClassProbability] | None = None
    error: "Problem | None" = None


class Predictions(BaseModel):
    """The answer to several images, in their order. Each stands for itself."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(examples=["efficientnet_lite0"])
    version: int = Field(ge=1, examples=[1])
    results: list[ImageResult]


class Problem(BaseModel):
    """An error, as RFC 9457 has it (`application/problem+json`)."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(examples=["urn:trident:problem:undecodable-image"])
    title: str = Field(examples=["Image cannot be decoded"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the PNG data is damaged or cut off"])


def problem(status: int, kind: str, title: str, detail: str) -> Problem:
    """The problem of an error class's attributes."""
    return Problem(type=f"urn:trident:problem:{kind}", title=title, status=status, detail=detail)
