"""Mechanisms that carry information from one segment to the next: (x, state) -> (y, state).

Where a mechanism `f` is computed in a fast form, `f_loop` beside it is its definition, in the plainest code:
tests hold the fast form, its gradients included, to the loop.
"""
