"""Files that are made from others: the dashboard, the alerts as a Kubernetes object, the table of settings.

``python deploy/render.py`` writes them; ``python deploy/render.py --check`` fails if one is not what it would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from app.settings import settings_table
from deploy.grafana.dashboard import dashboard_json

_ROOT = Path(__file__).resolve().parents[1]
_RULES = _ROOT / "deploy" / "prometheus" / "rules"

RUNBOOK_BASE_URL = ""
"""What stands before ``docs/runbook.md`` in the cluster's alerts, such as ``https://git.example.com/tresnet/blob/main/``.

Yours to set, for nothing here knows where your copy of the repository is; then `make render`.
"""


def rendered() -> dict[Path, str]:
    """Every made file's path and content."""
    return {
        _ROOT / "deploy/grafana/dashboards/tresnet.json": dashboard_json(),
        _ROOT / "deploy/kubernetes/components/monitoring/prometheus-rule.yaml": _prometheus_rule(),
        _ROOT / "docs/settings.md": settings_table(),
    }


def _prometheus_rule() -> str:
    groups = [group for file in sorted(_RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    for alert in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        alert["annotations"]["runbook_url"] = RUNBOOK_BASE_URL + alert["annotations"]["runbook_url"]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tresnet"},
        "spec": {"groups": groups},
    }
    return "# Made from deploy/prometheus/rules by deploy/render.py.\n" + yaml.safe_dump(
        rule, sort_keys=False, width=120
    )


def main() -> int:
    stale = [path for path, content in rendered().items() if not path.exists() or path.read_text() != content]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(_ROOT)} is not up to date: make render", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(rendered()[path])
        print(f"wrote {path.relative_to(_ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
