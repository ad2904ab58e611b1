"""The public JSON: answers and errors, the same from all three servers."""

from pydantic import BaseModel, ConfigDict, Field


class ClassProbability(BaseModel):
    """One class with its probability."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(examples=["espresso"])
    class_id: int = Field(ge=0, examples=[967])
    probability: float = Field(ge=0, le=1.0001, examples=[0.87])


class Prediction(BaseModel):
    """The answer to one image: the `top_k` most probable classes in descending order."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(examples=["efficientnet_lite0"])
    version: int = Field(ge=1, examples=[1])
    predictions: list[ClassProbability]

    @property
    def top(self) -> ClassProbability:
        """The most probable class."""
        return self.predictions[0]


class ImageResult(BaseModel):
    """The result for one of several images: its classes or its error."""

    model_config = ConfigDict(frozen=True)

    predictions: list[ClassProbability] | None = None
    error: "Problem | None" = None


class Predictions(BaseModel):
    """The answers to several images, in their order. One that fails does not affect the others."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(examples=["efficientnet_lite0"])
    version: int = Field(ge=1, examples=[1])
    results: list[ImageResult]


class Problem(BaseModel):
    """An error as problem details (RFC 9457, `application/problem+json`)."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(examples=["urn:trident:problem:undecodable-image"])
    title: str = Field(examples=["Image cannot be decoded"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the PNG data is damaged or cut off"])


def problem(status: int, kind: str, title: str, detail: str) -> Problem:
    """The problem details of an error class's attributes."""
    return Problem(type=f"urn:trident:problem:{kind}", title=title, status=status, detail=detail)
