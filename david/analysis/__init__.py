"""Questions about recipes besides a search: compare, profile, measure again."""
