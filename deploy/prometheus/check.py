"""What promtool does not look at: that every alert has its entry in the runbook, and every panel parses as PromQL."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import promql_parser
import yaml

from deploy.grafana.dashboard import expressions

_ROOT = Path(__file__).resolve().parents[2]
_ALERTS = _ROOT / "deploy" / "prometheus" / "rules" / "alerts.yml"


def faults() -> list[str]:
    """Alerts without an entry, entries without an alert, links that lead elsewhere, panels that do not parse."""
    rules = [rule for group in yaml.safe_load(_ALERTS.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules}
    entries = set(re.findall(r"(?m)^## (Tresnet\w+)$", (_ROOT / "docs" / "runbook.md").read_text()))
    found = [f"docs/runbook.md has no entry for {name}" for name in sorted(alerts - entries)]
    found += [f"docs/runbook.md describes {name}, which is no alert" for name in sorted(entries - alerts)]
    for rule in rules:
        link = rule["annotations"]["runbook_url"]
        if link != f"docs/runbook.md#{rule['alert'].lower()}":
            found.append(f"{rule['alert']} links to {link}")
    for expression in expressions():
        try:
            promql_parser.parse(expression)
        except ValueError as error:
            found.append(f"panel: {expression}: {error}")
    return found


if __name__ == "__main__":
    problems = faults()
    print("\n".join(problems) or "every alert has its entry, every panel parses", file=sys.stderr if problems else None)
    sys.exit(bool(problems))
