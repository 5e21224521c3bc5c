"""What turns data into code has no place in the packages, read from their source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import srgan_service

import srgan

SOURCES = sorted(
    path for package in (srgan, srgan_service) for path in Path(str(package.__file__)).parent.rglob("*.py")
)

# Names that are called. "pickle" may be imported for its exceptions.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "input", "os.system", "os.popen", "subprocess.getoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("dill.load", "joblib.load", "yaml.load", "yaml.unsafe_load", "torch.jit.load", "torch.hub.load"),
    *("tempfile.mktemp", "ssl._create_unverified_context", "importlib.util.spec_from_file_location"),
}
# A recipe names the module of a main network of its own, to be run.
RUNS_WHAT_ITS_USER_NAMES = ["importlib.util.spec_from_file_location"]
FORBIDDEN_OPTIONS = {("allow_pickle", "True"), ("shell", "True"), ("weights_only", "False"), ("verify", "False")}


def offences(source: str) -> list[str]:
    """Calls in `source` that may run what they are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill"):
            found.append(f"from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords}
        found += [name] if name in FORBIDDEN else []
        found += [f"{name}({option}={value})" for option, value in options & FORBIDDEN_OPTIONS]
        if name == "torch.load" and ("weights_only", "True") not in options:
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_no_call_turns_data_into_code(path: Path) -> None:
    allowed = RUNS_WHAT_ITS_USER_NAMES if path.name == "games.py" else []
    assert offences(path.read_text(encoding="utf-8")) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle\npickle.loads(data)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_offences_are_seen(source: str) -> None:
    assert offences(source)
    assert not offences("torch.load(path, weights_only=True)\nnetwork.eval()\nre.compile('a')")
