"The rooms of the house: which may import which, and that nothing points upward."
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/"miniai"

# Each room and the rooms it may import from, besides itself.
MAY_IMPORT = {
    "tools": set(),
    "data": {"tools"},
    "foundations": {"tools", "data"},
    "training": {"tools", "data"},
    "diffusion": {"tools", "data", "training"},
    "cli": {"tools", "data", "foundations", "training", "diffusion"},
    "app": {"tools", "data", "training", "diffusion"},
}

def room_of(module): return module.split(".")[1] if module.count(".") else ""

def imported(source, module):
    "Names of the miniai modules that `source`, the text of `module`, imports, wherever in it."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = module.split(".")[:-node.level] if node.level else []
            name = ".".join(base + ([node.module] if node.module else []))
            # `from .. import data` names rooms, `from ..data import datasets` a module of a room
            found |= {f"{name}.{a.name}" for a in node.names} if name in ("miniai", "") else {name}
    return {m for m in found if m.split(".")[0] == "miniai" and m != "miniai" and "__" not in m}

def wrong_way(source, module):
    "The imports in `source` that its room does not allow."
    room = room_of(module)
    return sorted(m for m in imported(source, module) if room_of(m) != room and room_of(m) not in MAY_IMPORT[room])

def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name not in ("__init__.py", "_modidx.py"): yield ".".join(parts), path

@pytest.mark.parametrize("module,path", list(modules()), ids=[m for m, _ in modules()])
def test_imports_point_one_way(module, path):
    assert room_of(module) in MAY_IMPORT, f"{module}: no such room; the rooms are {', '.join(MAY_IMPORT)}"
    assert wrong_way(path.read_text(encoding="utf-8"), module) == []

@pytest.mark.parametrize("source,module,wrong", [
    ("from ..foundations.matmul import chunks", "miniai.diffusion.unet", ["miniai.foundations.matmul"]),
    ("import miniai.cli", "miniai.tools.runner", ["miniai.cli"]),
    ("from .. import training", "miniai.data.datasets", ["miniai.training"]),
    ("def f():\n    from miniai.diffusion import unet", "miniai.training.learner", ["miniai.diffusion"]),
    ("from ..tools.testing import test_eq\nfrom .matmul import chunks\nimport torch", "miniai.foundations.layers", []),
])
def test_the_check_sees_wrong_ways(source, module, wrong):
    assert wrong_way(source, module) == wrong

def test_no_module_depends_on_a_later_one_of_its_room():
    "Within a room, imports follow the numbers of the chapters."
    chapter = {}
    for module, path in modules():
        first = next((line for line in path.read_text(encoding="utf-8").splitlines() if "File to edit:" in line), "")
        chapter[module] = first.rpartition("/")[2].rstrip(".")
    late = [(m, other) for m, path in modules() for other in imported(path.read_text(encoding="utf-8"), m)
            if other in chapter and chapter[other] >= chapter[m]]
    assert late == []

def test_no_star_imports():
    stars = [m for m, path in modules() for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)]
    assert stars == []

def test_weights_are_installed_with_the_package(tmp_path):
    "Whatever lies in `miniai/weights` is in the package that setup.py builds."
    pytest.importorskip("setuptools")
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path], cwd=ROOT, check=True, capture_output=True)
    def weights(package): return {str(p.relative_to(package)) for p in (package/"weights").rglob("*") if p.is_file()}
    assert weights(tmp_path/"miniai") == weights(PACKAGE) and "weights/glyphs/model_index.json" in weights(PACKAGE)
