"""Models of protocols as fields, actions and clauses: small enough to be exhausted, symbolic enough to be proved."""
