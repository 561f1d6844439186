"""What a stop reports: counts, and survivors."""
from __future__ import annotations

import threading

from threaded_echo import StopReport, Survivor


def test_report_for_people_has_the_counts_and_each_survivor():
    """A thread that serves no client has its own name there."""
    thread = threading.Thread(name="a thread of the program's own")
    stack = ('  File "/usr/lib/python3/threading.py", line 1, in run\n', '  File "program.py", line 3, in handle\n')
    survivors = (Survivor(None, stack, thread), Survivor(None, ()))
    made = StopReport(2, 1, survivors, 1.5)
    assert not made.clean and StopReport(2, 1, (), 0.0).clean
    assert str(made) == ("stopped in 1.500 s: 2 drained, 1 forced, 2 still running\n"
                         "thread a thread of the program's own:\n"
                         '  File "program.py", line 3, in handle\n'
                         "thread ?:")
