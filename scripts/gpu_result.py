"""Writes a part's outcome into gpu_check.json, beside device, versions and commit. Called by gpu_check.sh.

python scripts/gpu_result.py OUT PART OUTCOME SECONDS
"""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict:
    """As in the benchmark's results; without a module that was built, what can be known."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import report

        return report.environment("cuda")
    except Exception as error:  # whatever is broken, the outcomes are written all the same
        return {"unknown": f"{type(error).__name__}: {error}"}


def counts(report: Path) -> dict[str, int]:
    """How many tests of a pytest report passed, failed and were skipped."""
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ET.parse(report).getroot().iter("testsuite"):
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    totals["passed"] = totals["tests"] - sum(totals[name] for name in ("failures", "errors", "skipped"))
    return totals


def main() -> None:
    """Read what is there already, add the part, write it as a whole."""
    out, part, outcome, seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    path = out / "gpu_check.json"
    result = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    entry = {"outcome": outcome, "seconds": seconds}
    for name in ("gpu", "quick"):
        found = out / f".{name}.xml"
        if part == "test" and found.exists():
            entry[f"{name}_tests"] = counts(found)
            found.unlink()
    result |= environment()
    result["parts"][part] = entry
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
