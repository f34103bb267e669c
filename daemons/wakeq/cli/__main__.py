"""Run the command as `python -m wakeq.cli`."""

import sys

from wakeq.cli.main import main

sys.exit(main())
