"""Builds the kernel of the native engine; all else is in setup.cfg.

One library for all instruction sets of the processor, of which the best is chosen at load, and for
all versions of Python, which calls it through ctypes. Without a compiler on the machine, the one of
the package ziglang is used. Without either the package installs all the same, and layers run on
Keras' own loop.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FOLDER = "keras_gates/engine/native"
_FLAGS = """
-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -funroll-loops
-Wall -Wno-psabi -Wno-unknown-warning-option -Wno-ignored-attributes
"""
OTHERS = ["library", "team", "call", "tensorflow", "xla"]
FLAGS = _FLAGS.split()
AVX2 = ["-mavx", "-mavx2", "-mfma", "-mbmi2"]
AVX512 = [*AVX2, *["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]]
VARIANTS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS.update(avx2=AVX2, avx512=AVX512)


def system_compiler():
    """The command of a C++ compiler that works, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "try.cpp")
        with open(source, "w") as file:
            file.write("#include <thread>\nint main() { std::thread([] {}).join(); }\n")
        for name in filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]):
            command = shlex.split(name)
            if shutil.which(command[0]):
                made = [*command, "-std=c++17", "-pthread", source, "-o", f"{folder}/try"]
                if subprocess.run(made, capture_output=True).returncode == 0:
                    return command
    return None


def compile_kernel(command, to, folder):
    """Compiles and links the library `to`, with object files in `folder`."""
    jobs = {
        os.path.join(folder, f"{name}.o"): ["kernel.cpp", f"-DVARIANT={name}", *flags]
        for name, flags in VARIANTS.items()
    }
    for name in OTHERS:
        jobs[os.path.join(folder, f"{name}.o")] = [f"{name}.cpp"]
    running = [
        subprocess.Popen(
            [*command, *FLAGS, *arguments, "-c", f"{FOLDER}/{source}", "-o", made],
            stderr=subprocess.PIPE,
            text=True,
        )
        for made, (source, *arguments) in jobs.items()
    ]
    for process in running:
        _, error = process.communicate()
        if process.returncode:
            raise CompileError(error)
    static = ["-static-libstdc++", "-static-libgcc", "-s"] if sys.platform != "darwin" else []
    linked = [*command, "-shared", *jobs, "-o", to, "-pthread", *static]
    done = subprocess.run(linked, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr)


class BuildKernel(build_ext):
    def get_ext_filename(self, fullname):
        return f"{fullname.replace('.', os.sep)}.so"

    def build_extension(self, extension):
        command = system_compiler() or [sys.executable, "-m", "ziglang", "c++"]
        print(f"building the kernel with {' '.join(command)}")
        to = self.get_ext_fullpath(extension.name)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        os.makedirs(self.build_temp, exist_ok=True)
        compile_kernel(command, to, self.build_temp)


class AnyPython(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "keras_gates.engine.native.kernel",
            [f"{FOLDER}/{name}.cpp" for name in ("kernel", *OTHERS)],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": AnyPython},
    setup_requires=[] if system_compiler() else ["ziglang"],
)
