"""The entries of a plan: what each matrix loses, by rank or by zeros, and what that costs."""
