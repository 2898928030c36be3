"""Dovetail: companies that may not share customer data train models together.

Every partner runs a *node* that obeys agreed terms and its own privacy ledger; a *coordinator*
aggregates and never sees a row; *researchers* simulate with the same code. The rooms of this
package and who may import whom are described in ``docs/architecture.md``.
"""

__version__ = "0.1.0.dev0"
