"""Every overlay and example against schemas: Kubernetes' own, and the custom resources' models.

Enters: rendered manifests, by ``kubectl kustomize``. Leaves: status 0 and a line a file, or 1 and what is wrong. Unlike
the tools themselves, this fails on a kind that nothing knows, on a custom resource's field that its model lacks, and on
a gateway that would be killed while it drains, or for the memory that its settings let it take, on a Triton beside it
that others could reach, on an object that would land in whichever namespace is the caller's, and on a budget of
disruptions that lets no pod go.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from pydantic import BaseModel, ValidationError

from app.settings import Settings
from deploy import gateway_memory

_HERE = Path(__file__).parent
_VERSIONS = ("1.31", "1.37")  # the oldest that is meant to work, and the newest that has a schema
_MODELS: dict[str, type[BaseModel]] = {
    "keda.sh/v1alpha1 ScaledObject": ScaledObject,
    "monitoring.coreos.com/v1 PrometheusRule": PrometheusRule,
    "monitoring.coreos.com/v1 ServiceMonitor": ServiceMonitor,
}
# KServe publishes no schema as a package. Its predictor is a pod with these fields more, and is checked as a pod.
_KSERVE = "serving.kserve.io/v1beta1 InferenceService"
_KSERVE_FIELDS = {"minReplicas", "maxReplicas"}
_NEWER = {".spec.fallback.behavior: no such field"}  # KEDA has it since 2.17; the newest models are of 2.16
_BESIDE_GATEWAY = {"--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"}
"""Triton has no authentication: beside a gateway, whose pod is open to everybody, it listens on loopback alone."""


def main() -> int:
    faults = 0
    for folder in sorted(path.parent for path in _HERE.glob("[eo]*/*/kustomization.yaml")):  # examples, overlays
        rendered = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
        faults += _report(str(folder.relative_to(_HERE)), rendered, in_namespace=True)
    for file in sorted((_HERE / "examples").glob("*.yaml")):
        faults += _report(f"examples/{file.name}", file.read_text())
    return 1 if faults else 0


def _report(name: str, manifests: str, *, in_namespace: bool = False) -> int:
    objects = list(yaml.safe_load_all(manifests))
    faults = [f"{_title(thing)}: {fault}" for thing in objects for fault in faults_of(thing)]
    faults += [fault for thing in objects for fault in _gateway_faults(thing, objects)]
    faults += [fault for thing in objects for fault in _budget_faults(thing, objects)]
    if in_namespace:
        faults += [f"{_title(thing)}: has no namespace" for thing in objects if _lacks_namespace(thing)]
    for fault in faults:
        print(f"{name}: {fault}", file=sys.stderr)
    if not faults:
        print(f"{name}: {len(objects)} objects are valid for Kubernetes {_VERSIONS[0]} and {_VERSIONS[-1]}")
    return len(faults)


def faults_of(thing: dict[str, Any]) -> list[str]:
    """What is wrong with one object; nothing if it is valid."""
    kind = f"{thing.get('apiVersion')} {thing.get('kind')}"
    if kind in _MODELS:
        return _faults_by_model(_MODELS[kind], thing)
    if kind == _KSERVE:
        spec = {name: value for name, value in thing["spec"]["predictor"].items() if name not in _KSERVE_FIELDS}
        thing = {"apiVersion": "v1", "kind": "Pod", "metadata": thing["metadata"], "spec": spec}
    return [fault for version in _VERSIONS for fault in _faults_by_schema(thing, version)]


def _faults_by_schema(thing: dict[str, Any], version: str) -> list[str]:
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{version}: {'.'.join(map(str, error.path))}: {error.message}"]
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
        return [f"{version}: {error.message}"]
    return []


def _faults_by_model(model: type[BaseModel], thing: dict[str, Any]) -> list[str]:
    try:
        known = model.model_validate(thing).model_dump(mode="json", by_alias=True, exclude_unset=True)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return [fault for path in _missing(thing, known) if (fault := f"{path}: no such field") not in _NEWER]


def _gateway_faults(thing: dict[str, Any], objects: list[dict[str, Any]]) -> list[str]:
    """Whether a gateway's pod outlasts its drain and holds its memory, as its settings make them, and is closed."""
    if thing["kind"] == "InferenceService":
        pod = thing["spec"]["predictor"]
        faults = [f"Triton lacks {option}" for option in sorted(_BESIDE_GATEWAY - set(pod["containers"][1]["args"]))]
    elif (thing["kind"], thing["metadata"]["name"]) == ("Deployment", "gateway"):
        pod, faults = thing["spec"]["template"]["spec"], []
    else:
        return []
    container = pod["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        [data] = [
            other["data"] for other in objects if (other["kind"], other["metadata"]["name"]) == ("ConfigMap", name)
        ]
        variables |= data
    faults += _drain_faults(variables, pod["terminationGracePeriodSeconds"])
    return faults + gateway_memory.faults_of(variables, container["resources"]["limits"]["memory"])


def _lacks_namespace(thing: dict[str, Any]) -> bool:
    return thing["kind"] != "Namespace" and "namespace" not in thing["metadata"]


def _budget_faults(thing: dict[str, Any], objects: list[dict[str, Any]]) -> list[str]:
    """Whether a node could ever be drained: a budget that keeps all pods of a Deployment waits for ever."""
    if thing["kind"] != "PodDisruptionBudget":
        return []
    kept, labels = thing["spec"]["minAvailable"], thing["spec"]["selector"]["matchLabels"]
    return [
        f"{_title(thing)}: keeps {kept} of {count} pods, so that no node with one is ever drained"
        for other in objects
        if other["kind"] == "Deployment" and other["spec"]["selector"]["matchLabels"] == labels
        and (count := other["spec"].get("replicas")) is not None and count <= kept
    ]  # fmt: skip


def _drain_faults(variables: dict[str, str], grace_s: int) -> list[str]:
    names = ("drain_delay_s", "drain_refuse_s", "drain_timeout_s")
    drain_s = sum(float(variables.get(f"TRESNET_{n.upper()}", Settings.model_fields[n].default)) for n in names)
    return [] if grace_s > drain_s else [f"the gateway drains for {drain_s} s and is killed after {grace_s} s"]


def _missing(given: Any, known: Any, path: str = "") -> list[str]:
    """Paths in ``given`` that the model dropped."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [
            fault
            for name, value in given.items()
            for fault in ([f"{path}.{name}"] if name not in known else _missing(value, known[name], f"{path}.{name}"))
        ]
    if isinstance(given, list) and isinstance(known, list):
        return [
            fault for i, pair in enumerate(zip(given, known, strict=True)) for fault in _missing(*pair, f"{path}[{i}]")
        ]
    return []


def _title(thing: dict[str, Any]) -> str:
    return f"{thing.get('kind')} {thing.get('metadata', {}).get('name')}"


if __name__ == "__main__":
    sys.exit(main())
