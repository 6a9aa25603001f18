"""CUDA C compiled while the program runs, and launched beside torch: NVRTC and the driver, called through ctypes.

torch brings both libraries along, and has no public way to them. Where one is not found or refuses, an OSError or a
RuntimeError says so; whoever asks goes on without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLOCK = 256
"""Threads of a block."""


def find_nvrtc(torch: Any) -> ctypes.CDLL:
    """The compiler's library that belongs to this torch, else the one of the system. Raises OSError."""
    major = str(torch.version.cuda or "").split(".")[0]
    beside = Path(torch.__file__).parent.parent / "nvidia"
    names = [str(path) for path in sorted(beside.glob(f"**/libnvrtc.so.{major or '*'}"))]
    names += [f"libnvrtc.so.{major}"] if major else []
    error = OSError("libnvrtc is not found")
    for name in [*names, "libnvrtc.so"]:
        try:
            return ctypes.CDLL(name)
        except OSError as failed:
            error = failed
    raise error


def compile_cubin(nvrtc: ctypes.CDLL, text: str, architecture: str) -> bytes:
    """Machine code for an architecture such as ``sm_90``. Raises RuntimeError with what the compiler says."""
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None), "create")
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        if nvrtc.nvrtcCompileProgram(program, 1, options):
            raise RuntimeError(f"NVRTC refuses:\n{_text(nvrtc, program)}")
        size = ctypes.c_size_t()
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "size")
        cubin = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, cubin), "cubin")
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)), "log")
    log = ctypes.create_string_buffer(size.value + 1)
    _check(nvrtc.nvrtcGetProgramLog(program, log), "log")
    return log.value.decode(errors="replace")


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"CUDA: '{what}' fails with code {code}")


class Module:
    """Machine code on a device, in the context that torch uses there. Raises OSError or RuntimeError."""

    def __init__(self, torch: Any, device: Any, cubin: bytes) -> None:
        self.torch, self.device = torch, device
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._module = ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.synchronize(device)  # makes the context, where nothing has run yet
            _check(self._driver.cuModuleLoadData(ctypes.byref(self._module), cubin), "load")

    def function(self, name: str) -> ctypes.c_void_p:
        """A kernel by its name."""
        found = ctypes.c_void_p()
        _check(self._driver.cuModuleGetFunction(ctypes.byref(found), self._module, name.encode()), name)
        return found

    def launch(self, function: ctypes.c_void_p, count: int, arguments: Sequence[Any]) -> None:
        """Run a kernel in so many threads, on torch's stream. Tensors are given as pointers, numbers as C ints."""
        values = [
            ctypes.c_int(value) if isinstance(value, int) else ctypes.c_void_p(value.data_ptr()) for value in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self.torch.cuda.device(self.device):
            stream = ctypes.c_void_p(self.torch.cuda.current_stream(self.device).cuda_stream)
            blocks = -(-count // BLOCK)
            code = self._driver.cuLaunchKernel(function, blocks, 1, 1, BLOCK, 1, 1, 0, stream, pointers, None)
        _check(code, "launch")
