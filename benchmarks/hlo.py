"""What the benchmarks read in a compiled program."""

import re

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


def instructions(text: str) -> list[tuple[str, int]]:
    """Of each loop in a compiled program: what it was in Python, and the instructions in its body, the largest first."""
    computations = re.split(r"\n\n", text)
    sizes = {}
    for computation in computations:
        if name := re.match(r"\s*(?:ENTRY )?%?([\w.-]+)", computation):
            opcodes = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = .*? ([a-z][\w-]*)\(", computation, re.M)
            sizes[name[1]] = sum(opcode not in _FREE for opcode in opcodes)
    loops = re.findall(r"while\(.*?body=%?([\w.-]+).*?(?:op_name=\"([^\"]*)\"|$)", text, re.M)
    return sorted(((name, sizes.get(body, 0)) for body, name in loops), key=lambda x: -x[1])
