"""Mechanisms that carry information from one segment to the next: (x, state) -> (y, state).

Where a mechanism `f` is computed in a fast form, `f_loop` beside it is its definition in the plainest code
(`f_reference` if that isn't a loop).  Tests compare the fast form with it, gradients included.
"""
