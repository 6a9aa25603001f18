"""The proof: the clauses of the protocol model, shown to be inductive by an SMT solver (z3, the extra ``prove``)."""
