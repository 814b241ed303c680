"""How much storage a computation takes."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Bytes of new storage, and of the largest tensor, of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # alive, so that no address is used twice
        self.nbytes = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                old = {other.untyped_storage().data_ptr() for other in self.kept}
                given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
                self.largest = max(self.largest, storage.nbytes())
                if storage.data_ptr() not in old | given:
                    self.nbytes += storage.nbytes()
                    self.kept.append(part)
        return result
