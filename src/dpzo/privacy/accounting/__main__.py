"""Write the support page: `python -m dpzo.privacy.accounting docs/support.md`."""

import sys
from pathlib import Path

from dpzo.privacy.accounting.support_page import page

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
