"""Write the generated parts of README.md and docs/: settings, endpoints, errors and results. `make docs` runs it.

A page keeps its own text outside the markers `<!-- generated: NAME -->` and `<!-- end -->`.

    python -m scripts.generate_docs           write the pages
    python -m scripts.generate_docs --check   exit code 1 if a page is out of date
"""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from bundle import errors
from bundle.errors import TridentError
from loadtest.load import WarmUp
from loadtest.scenarios import SCENARIOS
from loadtest.settings import BenchSettings
from serving.clients.endpoint import SERVERS
from serving.fastapi_server.app import create_app
from serving.settings import Ports, ServingSettings
from serving.tuning import DEFAULTS, Tuning
from training.settings import RECIPES, TrainSettings

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
UNITS: Final = {"_ms": "ms", "_s": "s", "_bytes": "bytes", "_pixels": "pixels"}
TABLES_OF_SERVING: Final = {"ports", *DEFAULTS}  # nested tables, which have a section of their own
MARKED: Final = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Property = Mapping[str, Any]


def main() -> None:
    """Write the pages, or only compare them."""
    check = "--check" in sys.argv
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    stale = {page: text for page in pages if (text := generated(page.read_text())) != page.read_text()}
    for page, text in stale.items():
        if not check:
            page.write_text(text)
        print(f"{page.relative_to(ROOT)}: {'out of date; run `make docs`' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


def generated(text: str) -> str:
    """A page with its generated parts written again."""
    return MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


# --- settings


def serving_settings() -> str:
    """The settings of the servers, without the tables."""
    properties = _properties(ServingSettings)
    common = {key: entry for key, entry in properties.items() if key not in TABLES_OF_SERVING | {*Tuning.model_fields}}
    return _table(
        ("key in `trident.toml`", "environment", "default", "allowed", "meaning"),
        ((_code(key), _code(f"TRIDENT_{key.upper()}"), *_facts(key, entry)) for key, entry in common.items()),
    )


def tuning() -> str:
    """The settings with a default per server."""
    rows = (
        (
            _code(key),
            _code(f"TRIDENT_{key.upper()}"),
            *(_default(getattr(default, key)) for default in DEFAULTS.values()),
            *_facts(key, entry)[1:],
        )
        for key, entry in _properties(Tuning).items()
    )
    return _table(("key", "environment, for all servers", *DEFAULTS, "allowed", "meaning"), rows)


def ports() -> str:
    """The ports."""
    rows = (
        (_code(key), _code(f"TRIDENT_PORTS__{key.upper()}"), _default(entry["default"]))
        for key, entry in _properties(Ports).items()
    )
    return _table(("key in `[ports]`", "environment", "default"), rows)


def train_settings() -> str:
    """The settings of a training run, with what the recipes change."""
    recipes = [name for name, recipe in RECIPES.items() if recipe]
    rows = (
        (
            _code(_flag(key)),
            (facts := _facts(key, entry))[0],
            *(_default(RECIPES[name][key]) if key in RECIPES[name] else "" for name in recipes),
            *facts[1:],
        )
        for key, entry in _properties(TrainSettings).items()
    )
    return _table(("flag", "default", *(f"`{name}`" for name in recipes), "allowed", "meaning"), rows)


def bench_settings() -> str:
    """The settings of a benchmark, of its warm-up and of each scenario."""
    head = ("key", "default", "allowed", "meaning")
    own = {key: entry for key, entry in _properties(BenchSettings).items() if key not in ("scenarios", "warm_up")}
    parts = [_table(head, ((_code(key), *_facts(key, entry)) for key, entry in own.items()))]
    parts += ["Table `[warm_up]`:", _table(head, _rows(WarmUp))]
    for kind, scenario in SCENARIOS.items():
        parts += [f"Scenario `{kind}`, a table `[[scenarios]]`:", _table(head, _rows(scenario))]
    return "\n\n".join(parts)


def _rows(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for key, entry in _properties(model).items():
        if "const" not in entry:
            yield _code(key), *_facts(key, entry)


# --- HTTP


def endpoints() -> str:
    """Every endpoint of the FastAPI service."""
    rows = (
        (_code(f"{method.upper()} {path}"), _sentence(operation["description"]), ", ".join(operation["responses"]))
        for path, operations in _openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return _table(("request", "what it does", "statuses"), rows)


def parameters() -> str:
    """The parameters of /predict."""
    rows = (
        (
            _code(entry["name"] if entry["in"] == "query" else _header(entry["name"])),
            entry["in"],
            _allowed(_plain(entry["schema"])),
            _sentence(entry["description"]),
        )
        for entry in _openapi()["paths"]["/predict"]["post"]["parameters"]
    )
    return _table(("parameter", "where", "allowed", "meaning"), rows)


def error_kinds() -> str:
    """The errors that a client can get, in the order in which a request can meet them."""
    own = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, TridentError)]
    kinds: dict[str, type[TridentError]] = {}
    for error in own:
        if error.status != TridentError.status:
            kinds.setdefault(error.kind, error)
    rows = (
        (str(error.status), _code(f"urn:trident:problem:{kind}"), error.title, _sentence(error.__doc__ or ""))
        for kind, error in kinds.items()
    )
    return _table(("status", "`type`", "`title`", "when"), rows)


@cache
def _openapi() -> dict[str, Any]:
    description: dict[str, Any] = create_app(ServingSettings())._fastapi.openapi()
    return description


# --- results


# A server's name, with the backend where it matters: what is left of a lane's name without runtime, protocol and input.
LANE: Final = re.compile(rf"({'|'.join(SERVERS)})( \([\w ]+\))?")


def results() -> str:
    """Each server's lane with onnxruntime and encoded images over HTTP, from the report of `make results`."""
    report = (DOCS / "results" / "digits" / "report.md").read_text()
    head, _, *body = (_cells(line) for line in report.splitlines() if line.startswith("|"))
    found = {row[0].removesuffix(" onnxruntime"): row for row in body if len(row) == len(head)}
    rows = {name: dict(zip(head, row, strict=True)) for name, row in found.items() if LANE.fullmatch(name)}
    measured = re.findall(r"^Measured (\S+ on .*?);", report, re.MULTILINE)
    columns = [key for key in head if key.startswith(("p50", "highest requests", "at concurrency", "share of ceiling"))]
    table = _table(["server", *columns], ([name, *(row[key] for key in columns)] for name, row in rows.items()))
    return f"{measured[0]}:\n\n{table}"


def headline(name: str) -> str:
    """The headline table of a report below docs/results, with date, machine, revision and command."""
    report = (DOCS / "results" / name / "report.md").read_text()
    (table,) = re.findall(r"^\| lane \| golden answers .*?\n(?=\n)", report, re.MULTILINE | re.DOTALL)
    ((where, revision, command),) = re.findall(r"^Measured (.*); Trident (\S+); `(.*)`\.$", report, re.MULTILINE)
    how = f"Measured {where}, revision `{revision}`. [Full report](results/{name}/report.md)."
    return f"{textwrap.fill(how, 99)}\n\n```text\n{command}\n```\n\n{table.rstrip()}"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "serving-settings": serving_settings,
    "tuning": tuning,
    "ports": ports,
    "train-settings": train_settings,
    "bench-settings": bench_settings,
    "endpoints": endpoints,
    "parameters": parameters,
    "errors": error_kinds,
    "results": results,
    "results-digits": partial(headline, "digits"),
    "results-digits-slo": partial(headline, "digits-slo"),
    "results-efficientnet": partial(headline, "efficientnet_lite0"),
}


# --- cells


def _properties(model: type[BaseModel]) -> dict[str, Property]:
    schema = model.model_json_schema()
    return {key: _plain(entry) for key, entry in schema["properties"].items()}


def _plain(entry: Property) -> Property:
    """A property without its alternative null."""
    (found,) = [part for part in entry.get("anyOf", [{}]) if part.get("type") != "null"]
    return {**entry, **found}


def _facts(key: str, entry: Property) -> tuple[str, str, str]:
    """Default, what is allowed, and the meaning."""
    unit = next((f" {unit}" for suffix, unit in UNITS.items() if key.endswith(suffix)), "")
    allowed = _allowed(entry)
    return _default(entry.get("default")), allowed + unit if allowed else "", _sentence(entry.get("description", ""))


def _default(value: object) -> str:
    if value is None or value == [] or value == () or value == "":
        return "-"
    if isinstance(value, str):
        return _code(value.removeprefix(f"{ROOT}/"))
    return _code(json.dumps(value))


def _allowed(entry: Property) -> str:
    if "enum" in entry:
        return ", ".join(_code(value) for value in entry["enum"])
    if entry.get("type") == "array":
        return f"list of {_allowed(entry['items'])}"
    names = {"string": "text", "integer": "integer", "number": "number", "boolean": "`true`, `false`"}
    low = [f"≥ {entry['minimum']:,}"] if "minimum" in entry else []
    low += [f"> {entry['exclusiveMinimum']:g}"] if "exclusiveMinimum" in entry else []
    high = [f"≤ {entry['maximum']:,}"] if "maximum" in entry else []
    high += [f"< {entry['exclusiveMaximum']:,}"] if "exclusiveMaximum" in entry else []
    name = "path" if entry.get("format") == "path" else names.get(entry.get("type", ""), "")
    return ", ".join([name, *low, *high]).removeprefix(", ")


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _header(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


def _sentence(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(text: object) -> str:
    return f"`{text}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


if __name__ == "__main__":
    main()
