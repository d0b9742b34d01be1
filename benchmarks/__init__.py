"""Measurements of Foldin beside what people would use instead: `foldin bench [NAME]`.

Invariant: a figure is never compared with one from another run. What is compared runs interleaved on the same
machine, and nothing is reported while other work keeps the machine busy.
"""
