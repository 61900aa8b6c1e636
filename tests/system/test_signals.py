"""Signals while Python can't run a handler."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, os, signal, time
from cvt_cli.system import signals

signals.STUCK_SECONDS = 0.3
signal.signal(signal.SIGTERM, signals.once(lambda: print("handled", flush=True)))
signals.act_if_stuck(lambda: (print("stuck", flush=True), os._exit(9)))
print("ready", flush=True)
if {stuck}:
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
for _ in range(20):
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("stuck", "code", "said"), [(True, 9, "stuck\n"), (False, 0, "handled\nhandled\n")]
)
def test_only_who_does_not_hear_is_ended(stuck: bool, code: int, said: str) -> None:
    command = (sys.executable, "-c", PROGRAM.format(stuck=stuck))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.6)
        if not stuck:
            process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == said
        assert process.returncode == code
