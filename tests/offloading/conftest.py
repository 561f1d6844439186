"""Which of these tests an interpreter has."""
from __future__ import annotations

import concurrent.futures

collect_ignore = [] if hasattr(concurrent.futures, "InterpreterPoolExecutor") else ["test_interpreters.py"]
