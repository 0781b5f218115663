"""``python -m sft_lab``."""

import sys

from sft_lab.cli import main

sys.exit(main(sys.argv[1:]))
