"""Jobs at the top of a module, so that other processes find them."""

import os
import time
from pathlib import Path

STARTED: list[str] = []


def square(number):
    return number * number, os.getpid()


def die_on_three(number):
    if number == 3:
        os._exit(9)
    return number


def die_the_first_time(job):
    number, marker = job
    if number == 2 and not Path(marker).exists():
        Path(marker).touch()
        os._exit(9)
    return number


def fail_on_three(number):
    if number == 3:
        raise ValueError("three")
    return number


def slow_first(number):
    if number == 0:
        time.sleep(0.5)
    return number


def begin(word):
    if word == "fail":
        raise ValueError("it cannot begin")
    STARTED.append(word)


def started(_):
    return list(STARTED), os.environ.get("OMP_NUM_THREADS")


def leave_pid(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def hold_the_interpreter(folder):
    """Keep every thread of this process from running, as some compiled code does."""
    import ctypes

    (Path(folder) / str(os.getpid())).touch()
    ctypes.PyDLL(None).sleep(60)
