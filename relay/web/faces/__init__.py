"""The API shapes we serve besides the native one, so that each vendor's own client works against us unchanged.

How a face speaks is pure and stands in `relay/providers/<name>/face*.py`; here are its routes. Whatever upstream is behind,
a face sees native runs and native events only.
"""
