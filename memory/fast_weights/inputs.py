"""The arguments of the linear recurrence (`recurrence.py`) and what it returns, in its letters."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

Output = tuple[Float[Tensor, "rows time heads value_dim"], Float[Tensor, "rows heads head_dim value_dim"]]


class Inputs(NamedTuple):
    """The arguments of the recurrence.  Gradients go through all of them.

    `g` is None (no decay), (..., 1) for a decay per head, or (..., head_dim); `strength` is the delta rule's
    beta.
    """

    q: Float[Tensor, "rows time heads head_dim"]
    k: Float[Tensor, "rows time heads head_dim"]
    v: Float[Tensor, "rows time heads value_dim"]
    g: Float[Tensor, "rows time heads channels"] | None
    state: Float[Tensor, "rows heads head_dim value_dim"]
    a: Float[Tensor, "rows time heads head_dim"] | None = None
    b: Float[Tensor, "rows time heads head_dim"] | None = None
    bonus: Float[Tensor, "heads head_dim"] | None = None
    strength: Float[Tensor, "rows time heads 1"] | None = None

    def check(self) -> None:
        """ValueError for arguments that no rule takes together."""
        if (self.a is None) != (self.b is None):
            raise ValueError(f"expected a and b together, found {'b' if self.a is None else 'a'} alone")
        rules = {"a and b": self.a, "a bonus": self.bonus, "a strength": self.strength}
        given = [name for name, part in rules.items() if part is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of a and b, a bonus or a strength, found {' and '.join(given)}")
        if self.g is not None and self.g.shape[-1] not in (1, self.k.shape[-1]):
            raise ValueError(f"expected g with 1 or {self.k.shape[-1]} channels, found {self.g.shape[-1]}")

    def without_strength(self) -> "Inputs":
        """The delta rule by the keys that it writes and reads with: k = beta k, and a = exp(g) k without b.
        Other rules are returned as they are."""
        if self.strength is None:
            return self
        a = self.k if self.g is None else self.g.exp() * self.k
        return self._replace(k=self.strength * self.k, a=a, strength=None)
