"""The two gRPC messages of TorchServe's inference API that we use, as protobuf classes.

TorchServe's wheel has no Python code for them; the definition lies in its jar (inference.proto, fields by number):

    message PredictionsRequest { string model_name = 1; string model_version = 2; map<string, bytes> input = 3; }
    message PredictionResponse { bytes prediction = 1; }
"""

from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MessageOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PREDICTIONS: Final = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"

_PACKAGE: Final = "org.pytorch.serve.grpc.inference"
_FIELD: Final = FieldDescriptorProto


def _field(name: str, number: int, type_: Any, type_name: str = "", label: Any = _FIELD.LABEL_OPTIONAL) -> Any:
    return _FIELD(name=name, number=number, type=type_, label=label, type_name=type_name or None)


def _message_classes() -> tuple[Any, Any]:
    entry = DescriptorProto(
        name="InputEntry",
        field=[_field("key", 1, _FIELD.TYPE_STRING), _field("value", 2, _FIELD.TYPE_BYTES)],
        options=MessageOptions(map_entry=True),
    )
    entry_name = f".{_PACKAGE}.PredictionsRequest.InputEntry"
    request = DescriptorProto(
        name="PredictionsRequest",
        field=[
            _field("model_name", 1, _FIELD.TYPE_STRING),
            _field("model_version", 2, _FIELD.TYPE_STRING),
            _field("input", 3, _FIELD.TYPE_MESSAGE, entry_name, _FIELD.LABEL_REPEATED),
        ],
        nested_type=[entry],
    )
    response = DescriptorProto(name="PredictionResponse", field=[_field("prediction", 1, _FIELD.TYPE_BYTES)])
    pool = DescriptorPool()
    file = FileDescriptorProto(
        name="inference.proto", package=_PACKAGE, syntax="proto3", message_type=[request, response]
    )
    pool.Add(file)
    names = (f"{_PACKAGE}.PredictionsRequest", f"{_PACKAGE}.PredictionResponse")
    first, second = (GetMessageClass(pool.FindMessageTypeByName(name)) for name in names)
    return first, second


PredictionsRequest, PredictionResponse = _message_classes()
