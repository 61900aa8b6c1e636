"""Signals while Python can't run a handler."""

import signal
import subprocess
import sys
import time

# Its watcher waits until the test has seen what the main thread did, or not at all if that is
# stuck: nothing depends on how fast the machine is.
PROGRAM = """
import hashlib, os, signal, sys, threading, time
from types import SimpleNamespace
from cvt_cli.system import signals

stuck = {stuck}
waiting, go = threading.Semaphore(0), threading.Semaphore(0)

def sleep(seconds):
    if not stuck:
        waiting.release()
        go.acquire()
    else:
        time.sleep(2 * seconds)

signals.time = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
signals.REPEAT_SECONDS = 0
signals.STUCK_SECONDS = 0.1 if stuck else 100
signal.signal(signal.SIGTERM, signals.once(lambda: print("handled", flush=True)))
signals.act_if_stuck(lambda: (print("stuck", flush=True), os._exit(9)))
print("ready", flush=True)
if stuck:
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
for line in sys.stdin:
    waiting.acquire()
    go.release()
"""


def start(stuck: bool) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        (sys.executable, "-c", PROGRAM.format(stuck=stuck)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_who_does_not_hear_is_ended() -> None:
    with start(stuck=True) as process:
        while process.poll() is None:  # the first may come before it is stuck
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.stdout and process.stdout.read().endswith("stuck\n")
    assert process.returncode == 9


def test_who_hears_is_not() -> None:
    with start(stuck=False) as process:
        assert process.stdin and process.stdout
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "handled\n"
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0
