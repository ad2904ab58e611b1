"""What the python models read from their config.pbtxt."""

import json


def config_parameters(model_config: str) -> dict[str, str]:
    """The `parameters` of a model configuration, which Triton hands to python models as JSON."""
    parameters = json.loads(model_config).get("parameters", {})
    return {key: value["string_value"] for key, value in parameters.items()}
