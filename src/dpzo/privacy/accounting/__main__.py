"""Update the table of the support page: `python -m dpzo.privacy.accounting docs/support.md`."""

import sys
from pathlib import Path

from dpzo.privacy.accounting.support_page import updated

if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(updated(target.read_text(encoding="utf-8")), encoding="utf-8")
