"""``python -m sft_lab``."""

import sys

from sft_lab.commands.main import main

sys.exit(main(sys.argv[1:]))
