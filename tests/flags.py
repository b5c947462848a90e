"""XLA's flags in the tests, to be set before JAX is imported."""

import jaxlib.version


def xla_flags(devices: int = 8) -> str:
    """Flags for so many host devices, and for compiling quickly."""
    chosen = [f"--xla_force_host_platform_device_count={devices}", "--xla_backend_optimization_level=0"]
    if jaxlib.version.__version_info__ < (0, 11):
        # Fused operations become LLVM code directly, not by way of MLIR: the same operations in float32, compiled in a third
        # of the time. Later versions lack the option and stop at unknown ones; there fused operations compile as for users.
        # One part of each program at a time: there are as many processes as cores.
        chosen += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    return " ".join(chosen)
