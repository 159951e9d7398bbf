import os
import sys
import warnings

_FLAGS = {
    # Dots and reductions that jaxlib 0.10.2 and 0.11.0 hand to YNNPACK can hang for good, with every thread asleep
    # (https://github.com/jax-ml/jax/issues/39257), and are slower for networks as small as a policy's.
    "--xla_cpu_experimental_ynn_fusion_type": "",
    # The runtime's own thread pool has been seen to do the same on vmapped programs
    # (https://github.com/PyAutoLabs/PyAutoFit/issues/1530).
    "--xla_cpu_multi_thread_eigen": "false",
}


def set_cpu_flags() -> None:
    """Adds to `XLA_FLAGS` what keeps XLA's CPU runtime from hanging, except flags that are set there already; other backends ignore
    it. The `eqxrl` command, the tests and the benchmarks call it; so should a script that trains on CPU, first of all: it warns
    where a JAX computation has run already, since the flags are then without effect."""
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in _FLAGS.items() if name not in flags]
    started = getattr(sys.modules.get("jax._src.xla_bridge"), "backends_are_initialized", lambda: False)
    if missing and started():
        warnings.warn("set_cpu_flags() came too late: JAX has started already; call it before the first computation", stacklevel=2)
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])
