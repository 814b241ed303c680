"""The storage that a computation allocates."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Counts the bytes of new storage, and of the largest tensor, of operations inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []  # referenced, so that no address is used twice
        self.nbytes = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                counted = {tensor.untyped_storage().data_ptr() for tensor in self.tensors}
                inputs = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
                self.largest = max(self.largest, storage.nbytes())
                if storage.data_ptr() not in counted | inputs:
                    self.nbytes += storage.nbytes()
                    self.tensors.append(part)
        return result
