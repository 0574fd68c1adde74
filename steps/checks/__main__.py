"""``python -m steps.checks``."""

from steps.checks import main

raise SystemExit(main())
