"""What else than relevance and sensitivity scores layers: the criteria of HAWQ-V2, MPQCO, CLADO and LIMPQ."""
