"""Bit allocation: which bits every layer gets under a budget (METHOD.md, "Bit allocation")."""
