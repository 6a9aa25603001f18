"""Workers embedded in a scheduler loop: see README.md in this folder."""

from importlib.util import find_spec

for _module in ("torch", "PIL"):
    if find_spec(_module) is None:
        install = "pip install -c constraints.txt '.[torch,nixl,examples]'"
        raise SystemExit(f"error: this example needs {_module}: {install}")
