"""`python -m seqmix` is the same as `seqmix`."""

from __future__ import annotations

import sys

from seqmix.cli.main import main

sys.exit(main())
