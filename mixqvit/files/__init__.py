"""What is written and read: exports, allocations, studies, uploads."""
