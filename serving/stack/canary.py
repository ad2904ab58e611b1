"""A real picture to a server: the only health check that none of the three can pass while it is broken."""

from collections.abc import Callable, Sequence

from serving.bundle import Bundle
from serving.clients.client import UnreachableError
from serving.clients.connect import connect
from serving.clients.wire import RefusedError
from serving.errors import DeadlineExceededError, OverloadedError, TridentError, UnavailableError
from serving.runtimes import artefact_for
from serving.server_plan import Endpoint
from serving.settings import ServingSettings

_BUSY = (OverloadedError.status, UnavailableError.status, DeadlineExceededError.status)


def canary_fault(
    endpoint: Endpoint,
    bundles: Sequence[Bundle],
    settings: ServingSettings,
    *,
    busy_is_well: bool = False,
    answered: Callable[[Bundle], float] = lambda _: 0.0,
) -> str:
    """One prediction per bundle: '' if the server gives the golden answers, else what is wrong.

    Args:
        bundles: what it serves; of several versions of a model, the last one is the default.
        busy_is_well: a server is in order that refuses because its queue is full, or too long to be in time.
        answered: `serving.server_plan.Care.answered`: one that does not answer is in order if it answered others
            while the question waited.
    """
    default = {bundle.manifest.model: bundle for bundle in bundles}
    for bundle in bundles:
        versions = [bundle.manifest.version]
        if default[bundle.manifest.model] is bundle:
            versions.append(0)  # no version: the default one
        for version in versions:
            before = answered(bundle)
            try:
                fault = _ask(endpoint, bundle, version or None, settings)
            except RefusedError as error:
                fault = "" if busy_is_well and error.code in _BUSY else error.message
            except UnreachableError as error:
                fault = "" if answered(bundle) > before else error.message
            except TridentError as error:
                fault = error.message
            if fault:
                return fault
    return ""


def _ask(endpoint: Endpoint, bundle: Bundle, version: int | None, settings: ServingSettings) -> str:
    manifest = bundle.manifest
    name, picture = bundle.golden_pictures()[0]
    expected = bundle.golden_probabilities()[0]
    timeout_s, key = settings.request_timeout_s + 1, settings.client_key
    with connect(endpoint, manifest.model, version, timeout_s=timeout_s, api_key=key) as client:
        answer = client.predict(picture)
    if (answer.model, answer.version) != (manifest.model, manifest.version):
        return f"{answer.model}:{answer.version} answers instead of {bundle.name}"
    top = answer.top
    tolerance = artefact_for(bundle, settings.runtime, settings.precision).tolerance
    if not abs(top.probability - expected[top.class_id]) <= tolerance:
        return f"wrong answer to {name}: {top.label} {top.probability:.4f}, golden {expected[top.class_id]:.4f}"
    return ""
