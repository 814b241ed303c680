"""The zoo's Triton kernels compiled for GPUs that aren't there, down to machine code."""

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from zoo.memory.state_space import triton_scan

CONSTANTS = {"CHUNK": triton_scan.CHUNK, "BLOCK": triton_scan.BLOCK, "STATES": 16}


@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize("ones", [(), ("groups", "chunks")])
def test_a_kernel_compiles(kernel: str, dtype: str, capability: int, ones: tuple[str, ...]) -> None:
    """`ones`: sizes of 1 are constants to Triton."""
    function = getattr(triton_scan, kernel)
    constants = {
        name: CONSTANTS.get(name, 1) for name in function.arg_names if name.isupper() or name in ones
    }
    types = {name: f"*{dtype}" if name.endswith("_ptr") else "i32" for name in function.arg_names}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, signature, constexprs=constants)
    assert len(compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]) > 1000
