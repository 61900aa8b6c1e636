"""What Ray starts for a worker in place of a Python that imports for seconds: it has a
`ForkServer`, which has imported torch, fork one, and ends with it.

Run by Ray as a program, in place of its `setup_worker.py`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# A variable: where the server listens.
SERVER = "TESTS_RAY_WORKERS"
# What the server imports: not Ray, which reads the environment as it is imported, nor
# `cvt_cli.inference.classifier`, of which a worker may die.
IMPORTED = (
    *("torch", "pandas", "pyarrow.parquet", "pyarrow.dataset", "fsspec"),
    *("safetensors.torch", "cvt_cli.distributed.model_worker", "cvt_cli.distributed.reading_task"),
    *("cvt_cli.inference.batch_size", "cvt_cli.model.form"),
    *("google.protobuf.json_format", "jsonschema", "requests", "tqdm.auto", "yaml"),
    *("pydantic.main", "pydantic.v1", "msgpack", "filelock"),
)
# Code for a driver that starts Ray itself: the same options of its node.
FORKING = """
import os

from cvt_cli.distributed import connection


def importing(debug, _import_ray=connection._import_ray):
    ray = _import_ray(debug)
    ray._private.ray_constants.SETUP_WORKER_FILENAME = {setup_worker_path!r}
    return ray


connection._import_ray = importing
os.environ |= {env_vars}
"""
# What a Python does as it starts, then Ray's program.
CODE = """
import contextlib
import os
import sys

sys.path[:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
with contextlib.suppress(ImportError):
    sys.modules.pop("sitecustomize", None)
    import sitecustomize
__file__ = sys.argv[0]
with open(__file__, "rb") as program:
    code = compile(program.read(), __file__, "exec")
exec(code)
"""

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fork_server import Fork  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context")
    parser.add_argument("--language")
    about, arguments = parser.parse_known_args()
    wanted = json.loads(about.serialized_runtime_env_context or "{}")
    environment = {**os.environ, **wanted.get("env_vars", {})}
    worker = Fork(os.environ[SERVER], CODE, arguments, env=environment, cwd=os.getcwd())
    sys.exit(worker.wait())
