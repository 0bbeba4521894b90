"""The paper's claims, measured again: its tables, its figures and its statements on lattices.

A measurement returns a frozen dataclass that goes to JSON and back (`records`); a figure is drawn
from that dataclass alone.
"""
