"""Everything that must hold, stage by stage: what `make test` runs.

Each stage says what it does, how long it took, and what is wrong. Nothing in the working tree is changed.
The last line is `N passed, N failed`.
"""
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CHAPTER_SECONDS = 900 # A chapter that hangs is stopped and counts as failed

def sh(*cmd, cwd=ROOT, timeout=None):
    "Run a command; returns its exit status and everything it printed."
    try: done = subprocess.run([str(c) for c in cmd], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as e:
        printed = e.stdout.decode(errors="replace") if isinstance(e.stdout, bytes) else e.stdout or ""
        return 1, printed + f"\nstopped after {timeout} seconds"
    return done.returncode, done.stdout

def changed(before, after, pattern):
    "Relative paths of the files matching `pattern` that differ between two folders, or are in one of them only."
    names = {p.relative_to(d) for d in (before, after) for p in d.rglob(pattern) if not {".ipynb_checkpoints", "__pycache__"} & set(p.parts)}
    return sorted(str(n) for n in names if not ((before/n).exists() and (after/n).exists() and filecmp.cmp(before/n, after/n, shallow=False)))

def remade(command, folder, pattern, remake):
    "Run `command` in a copy of what it reads; one (name, problem) that lists the files of `folder` it would change."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/ROOT.name
        copy.mkdir()
        for f in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT/f, copy)
        shutil.copytree(ROOT/"nbs", copy/"nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
        status, text = sh(BIN/command, cwd=copy)
        files = changed(ROOT/folder, copy/folder, pattern)
    problem = text if status else f"{command} would change: {', '.join(files)}; run `make {remake}` and commit" if files else ""
    return [(command, problem)]

def exported(): return remade("nbdev_export", "miniai", "*.py", "export")

def cleaned(): return remade("nbdev_clean", "nbs", "*.ipynb", "export")

def linted():
    status, text = sh(BIN/"ruff", "check", "--no-cache", "miniai", "nbs", "tests", "setup.py")
    return [("ruff", text if status else "")]

def pytested(*args):
    "Run pytest; one (name, problem) for each of its tests."
    with tempfile.TemporaryDirectory() as tmp:
        status, text = sh(BIN/"pytest", *args, "-p", "no:cacheprovider", f"--junitxml={tmp}/report.xml", timeout=CHAPTER_SECONDS)
        report = Path(tmp)/"report.xml"
        cases = ET.parse(report).iter("testcase") if report.exists() else []
        rows = [(f"{c.get('classname')}.{c.get('name')}", next((p.text or p.get("message") or "it failed" for p in c if p.tag in ("failure", "error")), "")) for c in cases]
    if rows and (status == 0 or any(problem for _, problem in rows)): return rows
    return [*rows, ("pytest", text or "no test ran")]

def house(): return pytested("tests/test_house.py")

def command_line(): return pytested("tests/test_cli.py", "-n", "2") # each starts processes, most of whose time is importing

def chapter(path):
    "Run one chapter as nbdev_test does."
    start = time.time()
    status, text = sh(BIN/"nbdev_test", "--path", path, "--n_workers", "0", timeout=CHAPTER_SECONDS)
    print(f"   {path.stem:<22} {time.time() - start:6.1f} s {'FAILED' if status else ''}", flush=True)
    return path.stem, text if status else ""

def chapters():
    "All chapters, two at a time: the longest first would be better, but the order of the book is easier to watch."
    paths = sorted(p for p in (ROOT/"nbs").glob("*.ipynb") if not p.name.startswith("_"))
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool: return list(pool.map(chapter, paths))

STAGES = {
    "the package is what the chapters export": exported,
    "the notebooks are clean": cleaned,
    "ruff has no complaint": linted,
    "imports point one way": house,
    "every chapter runs (nbdev_test)": chapters,
    "the command line does what it says": command_line,
}

def main():
    passed = failed = 0
    begun = time.time()
    for title, stage in STAGES.items():
        print(f"== {title}", flush=True)
        start = time.time()
        rows = stage() or [(title, "there was nothing to check")]
        bad = [(name, problem) for name, problem in rows if problem]
        for name, problem in bad: print(f"-- FAILED: {name}\n{problem.rstrip()}")
        print(f"   {len(rows) - len(bad)} of {len(rows)} hold, {time.time() - start:.1f} s", flush=True)
        passed, failed = passed + len(rows) - len(bad), failed + len(bad)
    print(f"All stages took {time.time() - begun:.0f} s.")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0

if __name__ == "__main__": sys.exit(main())
