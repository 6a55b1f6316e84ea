"""Verify a run that somebody gave you, without the private data, and rebuild its weights from the journal.

python examples/verify_run.py run --key signer.pub
"""

import argparse
import sys

import dpzo

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="the run's folder")
parser.add_argument("--base", help="the base model's folder, if it is not where the run names it")
parser.add_argument("--key", help="public key of the signer; the run must then be signed with it")
parser.add_argument("--rebuild", help="a new folder for the rebuilt weights")
options = parser.parse_args()

run = dpzo.load(options.run)
print(run.card["claim"])
report = run.verify(base=options.base, key=options.key)
for check in report.checks:
    result = {True: "ok", False: "FAILED", None: "does not apply"}[check.ok]
    print(f"{check.name:<18} {result:<15} {check.detail}")
for finding in report.findings:
    print(f"finding: {finding}")
if options.rebuild:
    rebuilt = run.replay(options.rebuild, base=options.base)
    print(f"rebuilt from the journal, equal bit for bit: {rebuilt.equals_run}")
sys.exit(0 if report.ok else 1)
