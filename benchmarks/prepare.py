"""The native code of `make gpu`: what was compiled beforehand where it runs here, else a build on this machine.

python -m benchmarks.prepare          build/gpu/profile and hanops/_C, here and now
python -m benchmarks.prepare --ship   build/gpu/profile-<hash of the sources>, for another machine
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GPU = ROOT / "build" / "gpu"
MODULE = (".", "cpu", "cuda")  # what the extension module is compiled from, in csrc
READY = ROOT / "build" / "gpu-ready"  # a file for each thing that is there
PROGRAM = READY / "han_stack_profile"
DEVELOPED = ROOT / "build" / "cmake"
EMULATED = DEVELOPED / "emulated_profile"
BUILD = ROOT / "build" / "gpu-build"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
CHECK = (
    "import hanops, sys; from hanops.backends.native import native;"
    " kernels = native and native.build_info().get('cuda_architectures'); print('CUDA kernels for', kernels);"
    " sys.exit(0 if native and (kernels or sys.argv[1] == 'cpu') else 3)"
)


def source_files(*folders: str) -> list[Path]:
    """Returns the files in these folders of csrc that native code is compiled from."""
    found = [file for folder in folders for file in (ROOT / "csrc" / folder).iterdir()]
    return sorted(file for file in found if file.suffix in (".cpp", ".h", ".cu", ".cuh"))


def sources(*folders: str) -> str:
    """Returns a hash of them; without folders, of what the profile program is compiled from."""
    digest = hashlib.sha256()
    for file in source_files(*(folders or ("cuda",))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """Returns the commit, from git or from what `--ship` wrote."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    except OSError:
        pass
    file = GPU / "commit"
    return file.read_text().strip() if file.exists() else "unknown"


def lack(what: str, being_made: bool) -> str | None:
    """Tells why the 'program' or the 'native' code is not there, "wait" while it is being made; None where it is."""
    if (READY / what).exists():
        return None
    return "wait" if being_made else "no native code" if what == "native" else "no profile program"


def ready(what: str, how: str) -> None:
    (READY / what).write_text(how)
    print(f"{what}: {how}", flush=True)


def run(command: list[str | Path], **environment: str) -> bool:
    """Runs a command with its output, and tells whether it succeeded."""
    try:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": TOOLS, **environment})
    except OSError as error:
        print(error, flush=True)
        return False
    return done.returncode == 0


def capability() -> str:
    """Returns the GPU's compute capability, '9.0' where none can be asked."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    except OSError:
        lines = []
    return lines[0] if lines else "9.0"


def cmake(target: str, **environment: str) -> bool:
    """Configures and builds a target: CMakeLists.txt is all that this needs, whichever setuptools is here."""
    major = capability().split(".")[0]
    architecture = {"8": "80", "9": "90"}.get(major, "100")
    options = ["-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", f"-DHANOPS_PROFILE={architecture}"]
    return run(["cmake", "-S", ROOT, "-B", BUILD, *options], **environment) and run(
        ["cmake", "--build", BUILD, "--target", target], **environment
    )


def install(file: Path, target: Path) -> None:
    target.unlink(missing_ok=True)  # a running program may have the old file mapped
    shutil.copy2(file, target)
    target.chmod(0o755)


def program_runs(file: Path) -> bool:
    try:
        return subprocess.run([file, "--help"], capture_output=True).returncode == 0
    except OSError:
        return False


def prepare_program(build: bool) -> bool:
    """Makes the profile program ready: a shipped one of these sources, one built here, one of other sources."""
    if PROGRAM.exists():
        return True
    same = GPU / f"profile-{sources()}"
    if same.exists() and program_runs(same):
        install(same, PROGRAM)
        ready("program", f"{same.name}, of these sources")
        return True
    if not build:
        return False
    print(f"no {same.name} that runs here: building it", flush=True)
    if cmake("han_stack_profile") and program_runs(BUILD / "han_stack_profile"):
        install(BUILD / "han_stack_profile", PROGRAM)
        ready("program", "built here")
        return True
    for other in GPU.glob("profile-????????????"):
        if program_runs(other):
            install(other, PROGRAM)
            ready("program", f"{other.name}, OF OTHER SOURCES: these are {sources()}")
            return True
    return False


def module_loads(device: str) -> bool:
    return run([sys.executable, "-W", "ignore", "-c", CHECK, device])


def take_module(shipped: Path, of: str) -> bool:
    """Puts a shipped module into the package, and tells whether it imports there."""
    here = ROOT / "hanops" / shipped.name
    if not shipped.exists():
        return False
    install(shipped, here)
    if module_loads("cuda"):
        ready("native", f"the shipped {shipped.name}, {of}")
        return True
    here.unlink()
    print(f"the shipped {shipped.name} does not import here", flush=True)
    return False


def prepare_module(build: bool) -> bool:
    """Makes the extension module ready: a shipped one of these sources, one built here, one of other sources."""
    name, note, these = f"_C{SUFFIX}", GPU / "_C.sources", sources(*MODULE)
    if (READY / "native").exists():
        return True
    of = note.read_text().strip() if note.exists() else "unknown"
    if not build:
        return of in (these, "unknown") and take_module(
            GPU / name, "of these sources" if of == these else "UNKNOWN SOURCES"
        )
    print("building the extension module", flush=True)
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", capability())
    if cmake("_C", TORCH_CUDA_ARCH_LIST=architectures):
        install(BUILD / name, ROOT / "hanops" / name)
        if module_loads("cuda"):
            ready("native", f"{name} built here for {architectures}")
            return True
    return of != these and take_module(GPU / name, f"OF OTHER SOURCES: these are {these}")


def built_for_tests(*targets: str) -> bool:
    """Builds targets in the folder of `make build`, when the tests build nothing there: Ninja locks nothing."""
    with (DEVELOPED / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return run(["cmake", "--build", DEVELOPED, "--target", *targets])


def rehearse() -> bool:
    """The emulated program, and the module that `make build` has left."""
    if not built_for_tests(EMULATED.name, "cuda_emulator"):
        return False
    install(EMULATED, PROGRAM)
    ready("program", "the emulated one")
    if module_loads("cpu"):
        ready("native", "as it was built here")
    return (READY / "native").exists()


def ship() -> bool:
    """Leaves the profile program of these sources in build/gpu, the commit, and the sources of the module there."""
    if not built_for_tests("han_stack_profile"):
        return False
    GPU.mkdir(parents=True, exist_ok=True)
    for old in GPU.glob("profile-????????????"):
        old.unlink()
    target = GPU / f"profile-{sources()}"
    install(DEVELOPED / "han_stack_profile", target)
    run(["strip", target])
    (GPU / "commit").write_text(f"{commit()}\n")
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")
    return note_module()


def note_module() -> bool:
    """Notes the sources of the shipped modules; says where they are older than the sources, and returns False."""
    modules = list(GPU.glob("_C.*.so"))
    changed = max(file.stat().st_mtime for file in source_files(*MODULE))
    old = [module.name for module in modules if module.stat().st_mtime < changed]
    (GPU / "_C.sources").write_text("older\n" if old else f"{sources(*MODULE)}\n")
    print(f"OLDER THAN csrc: {old[0]}" if old else f"{len(modules)} extension module(s) of these sources")
    return not old


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--ship", action="store_true")
    given = parser.parse_args()
    READY.mkdir(parents=True, exist_ok=True)
    if given.ship:
        return 0 if ship() else 1
    if given.rehearse:
        return 0 if rehearse() else 1
    # What is shipped first, then what takes minutes.
    made = [prepare_program(False), prepare_module(False)]
    if not all(made):
        made = [prepare_program(True), prepare_module(True)]
    for what, there in zip(("profile program", "native code"), made, strict=True):
        if not there:
            print(f"NO {what.upper()}: the reason stands above")
    return 0 if all(made) else 1


if __name__ == "__main__":
    sys.exit(main())
