"""`cvt doctor`."""

import platform

import torch

from tests.conftest import RunCvt


def test_names_what_a_bug_report_needs_and_no_secret(run_cvt: RunCvt) -> None:
    secrets = {"HF_TOKEN": "hf_verysecret", "HTTPS_PROXY": "http://me:password@proxy:1"}
    secrets |= {"http_proxy": "http://me:password@proxy:1"}
    blob = run_cvt.hf_home / "hub" / "models--org--name" / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(5000))
    done = run_cvt("doctor", "--format", "json", env=secrets, expect=0)
    found = done.json()
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["fast"]["device"] == "cpu"
    assert found["cache"]["models"] == 1 and found["cache"]["bytes"] == 5000
    assert {found["environment"][name] for name in secrets} == {"set"}
    assert found["extras"]["parquet"]["installed"]
    text = run_cvt("doctor", env=secrets, expect=0)
    for said in (done.stdout, text.stdout, text.stderr):
        assert "secret" not in said and "password" not in said
    assert torch.__version__ in text.stdout and "extra parquet" in text.stdout


def test_the_format_is_checked_first(run_cvt: RunCvt) -> None:
    first = "import sys; sys.modules['cvt_cli.benchmark.bug_report'] = None"
    process = run_cvt.start("doctor", "--format", "bogus", first=first)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "bogus: no such format" in errors
