"""`make fuzz`: hundreds of kills and stops, and every reader at length; a summary, and benchmarks/results/fuzz.json."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dpzo.run.environment import environment

HERE = Path(__file__).resolve().parent
RESULT = HERE.parents[1] / "benchmarks" / "results" / "fuzz.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sweep", type=int, default=10**6, help="acts of the double's run to die at, at most")
    parser.add_argument("--kills", type=int, default=240, help="of the double, beyond one at every act")
    parser.add_argument("--whole", type=int, default=30, help="of each of the whole runs")
    parser.add_argument("--stops", type=int, default=20, help="at random times, beyond one in every phase")
    parser.add_argument("--phases", type=int, default=26, help="phases and signals, at most")
    parser.add_argument("--examples", type=int, default=8, help="times as many of each reader as in make test")
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found = Path(name) / "campaign.json"
        numbers = {name: value for name, value in vars(given).items() if name != "examples"}
        words = [word for option, value in numbers.items() for word in (f"--{option}", str(value))]
        subprocess.run([sys.executable, str(HERE / "campaign.py"), "--json", str(found), *words], check=True)
        campaign = json.loads(found.read_text())
    readers = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "not campaign", f"--hypothesis-seed={given.seed}", str(HERE)],
        env={**os.environ, "DPZO_FUZZ": str(given.examples)},
        capture_output=True,
        text=True,
    )
    if readers.returncode != 0:
        print(readers.stdout[-6000:], readers.stderr[-2000:], file=sys.stderr)
    content = {
        "command": " ".join(["python tests/faults/at_length.py", *sys.argv[1:]]) if sys.argv[1:] else "make fuzz",
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "versions": environment(),
        "seconds": round(time.monotonic() - start, 1),
        "campaign": campaign,
        "readers": {
            "times the examples of make test": given.examples,
            "all passed": readers.returncode == 0,
        },
    }
    RESULT.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for line, value in campaign.items():
        print(f"{line:<24} {len(value) if line == 'mismatches' else value}")
    print(f"{'readers':<24} {'all passed' if readers.returncode == 0 else 'FAILED'}")
    for mismatch in campaign["mismatches"]:
        print(f"MISMATCH {mismatch}", file=sys.stderr)
    return int(bool(campaign["mismatches"]) or readers.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
