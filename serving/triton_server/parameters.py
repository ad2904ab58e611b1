"""What the python models read from config.pbtxt."""

import json
from pathlib import Path
from typing import Any, Final

from bundle.store import Bundle, read_bundle
from serving.settings import ServerSettings, ServingSettings

# The settings that a model needs or reports, as JSON.
SETTINGS: Final = "settings"
# What the image model calls Triton's native classifier, as JSON; no such parameter: it classifies itself.
NATIVE: Final = "native_classifier"
BUNDLE_FOLDER: Final = "bundle"


def config_parameters(config: dict[str, Any]) -> dict[str, str]:
    """The `parameters` of a model configuration as JSON."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def settings_of(parameters: dict[str, str]) -> ServerSettings:
    """The settings with which `repository` rendered the configuration."""
    return ServingSettings.model_validate_json(parameters[SETTINGS]).of("triton")


def bundle_of(args: dict[str, str]) -> Bundle:
    """The bundle that `repository` has put beside the model's code. `args` are those of `initialize`."""
    return read_bundle(Path(args["model_repository"]) / args["model_version"] / BUNDLE_FOLDER)


def config_of(args: dict[str, str]) -> dict[str, Any]:
    """The model's configuration, which Triton passes to `initialize`."""
    config: dict[str, Any] = json.loads(args["model_config"])
    return config
